"""What `tools/local_search.py` counts, and how docs/audit.md shows it."""

from collections.abc import Callable
from dataclasses import replace

import local_search as tool
import pytest
import torch
from population_search import Box, Scored, descend, evolve, population_search
from torch import Tensor

import spikeguard as sg
from spikeguard.attacks import Attacked
from spikeguard.networks.classifier import Classifier
from spikeguard.records.schema import Convergence, Digests
from spikeguard.runtime.machine import machine


class Bright(Classifier):
    """Right where the first pixel is at most 0.55."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def forward(self, x: Tensor, per_step: bool = False) -> Tensor:
        high = (x[:, 0, 0, 0] > 0.55).to(x.dtype)
        return torch.stack([torch.full_like(high, 0.5), high], 1)


def survivors() -> tool.Survivors:
    x, ids = torch.full((3, 1, 2, 2), 0.5), torch.tensor([4, 7, 9])
    return tool.Survivors(Bright(), sg.Linf(0.1), x, torch.zeros(3, dtype=torch.long), ids, x)


def claims(on: tool.Survivors, moved: set[int], claimed: set[int]) -> Attacked:
    """What an attack returns that moves some samples over the border and claims to break some."""
    x, broken = on.x.clone(), torch.tensor([i in claimed for i in on.index.tolist()])
    x[[i in moved for i in on.index.tolist()], 0, 0, 0] = 0.6
    return Attacked(x, broken, torch.zeros(len(x)), 10, 1, torch.zeros(len(x)).long())


def test_a_part_attacks_what_the_parts_before_left_and_a_claim_must_hold() -> None:
    attacked: list[list[int]] = []

    def first(on: tool.Survivors) -> list[Attacked]:
        attacked.append(on.index.tolist())
        return [claims(on, {7}, {4, 7})]  # 4 is claimed, but the network is right there

    def second(on: tool.Survivors) -> list[Attacked]:
        attacked.append(on.index.tolist())
        return [claims(on, set(), set()), claims(on, {9}, {9})]

    found = tool.found_by((first, second), survivors())
    assert attacked == [[4, 7, 9], [4, 9]]
    assert found.samples == (7, 9)
    assert found.passes == 33


def test_a_search_ends_once_everything_is_broken() -> None:
    found = tool.found_by((lambda on: [claims(on, {4, 7, 9}, {4, 7, 9})], tool.longer), survivors())
    assert found.samples == (4, 7, 9)
    assert found.passes == 11


def test_the_page_counts_what_goes_beyond_standard() -> None:
    found = tool.Found((4,), 900, 1.0)
    row = tool.SearchRow(
        Digests("a", "b"),
        8 / 255,
        81,
        (4, 7, 9),
        5,
        {tool.LOCAL_MEMBER.id: 300},
        Convergence(tool.LOCAL_MEMBER.id, 8, ((500, 3), (1000, 5)), 0.02),
        {"square5000": found, "longer": found, "from-gradients": replace(found, samples=(4, 9))},
    )
    text = "\n".join(tool.section(tool.SearchRecord("suite", "hash", 100, machine(), {"net": row})))
    assert "| net | 8/255 | 81 | 3 | 5 | 1 | 2 | 1 | not run |" in text
    assert "2 more of net" in text
    assert "net 2;" in text
    assert "3.0 times (net)" in text
    del row.beyond["longer"]
    assert "| 5 | not run | 2 |" in "\n".join(
        tool.section(tool.SearchRecord("s", "h", 9, machine(), {"net": row}))
    )


class Pair(Classifier):
    """Wrong where the first pixel is bright and the last one is dark."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def forward(self, x: Tensor, per_step: bool = False) -> Tensor:
        high = 0.5 * (x[:, 0, 0, 0] > 0.55).to(x.dtype) + 0.6 * (x[:, 0, -1, -1] < 0.45).to(x.dtype)
        return torch.stack([torch.ones_like(high), high], 1)


def test_populations_and_flips_find_a_pair_of_pixels_inside_the_budget() -> None:
    image, threat = torch.full((1, 4, 4), 0.5), sg.Linf(0.1)
    for passes, seed in ((2, 0), (400, 0), (400, 1)):
        found, used = population_search(Pair(), image, 0, threat, [image], passes, seed)
        threat.check(found[None], image[None])
        assert used <= passes + 60
    assert float(Pair()(found[None])[0, 1]) == pytest.approx(1.1)
    again, _ = population_search(Pair(), image, 0, threat, [image], 400, 1)
    assert torch.equal(found, again)


@pytest.mark.parametrize("search", [evolve, descend])
def test_each_half_of_it_works_alone(search: Callable[..., Tensor]) -> None:
    image = torch.full((1, 4, 4), 0.5)
    score, box = Scored(Pair(), 0), Box.around(image, sg.Linf(0.1))
    first = image if search is descend else torch.stack([image, box.corner(image)])
    found = search(score, box, first, 2000, torch.Generator().manual_seed(0))
    assert float(score(found.view(-1, 1, 4, 4)[:1])) > 0


def test_a_population_that_finds_nothing_keeps_its_best_point() -> None:
    on = survivors()
    got = tool.population(replace(on, net=AlwaysRight()))
    assert not got[-1].broken.any()
    on.threat.check(got[-1].x, on.x)


class AlwaysRight(Classifier):
    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def forward(self, x: Tensor, per_step: bool = False) -> Tensor:
        return torch.stack([1 + x[:, 0, 0, 0], x[:, 0, 0, 1] * 0.1], 1)
