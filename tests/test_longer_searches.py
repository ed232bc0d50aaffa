"""What `tools/local_search.py` counts, and how docs/audit.md shows it."""

from dataclasses import replace

import local_search as tool
import torch
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
    assert "| net | 8/255 | 81 | 3 | 5 | 1 | 2 | 1 |" in text
    assert "2 more of net" in text
    assert "net 2;" in text
    assert "3.0 times (net)" in text
    del row.beyond["longer"]
    assert "not run" in "\n".join(tool.section(tool.SearchRecord("s", "h", 9, machine(), {"net": row})))
