"""Each number of a diagnosis against a count by hand, a closed form or a plain loop."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.diagnosis.energy import energy, pairs
from spikeguard.diagnosis.flips import attack_flips, fire_chance, noise_flips
from spikeguard.diagnosis.holding import held_rows, holds
from spikeguard.diagnosis.rank import auc
from spikeguard.diagnosis.readings import read
from spikeguard.diagnosis.sensitivity import gradients, sampled
from spikeguard.losses import margin
from spikeguard.networks.classifier import Classifier

Pair = tuple[Tensor, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    score, positive = draw(40).mul(3).round(), draw(40, seed=1) > 0
    pairs_of = list(itertools.product(score[positive].tolist(), score[~positive].tolist()))
    by_hand = sum((a > b) + 0.5 * (a == b) for a, b in pairs_of) / len(pairs_of)
    assert auc(score, positive) == pytest.approx(by_hand)
    assert auc(score, torch.ones(40, dtype=torch.bool)) is None


@pytest.mark.parametrize("sigma", [0.05, 0.3])
def test_noise_flips_as_many_spikes_as_the_closed_form_says(tiny: Classifier, sigma: float) -> None:
    noisy = read(tiny, draw(60, 1, 8, 8).clamp(0, 1), 40, noise=sigma, seed=3)
    for name, u in noisy.u.items():
        found = noise_flips(u, noisy.spikes[name], sigma)
        assert found.agrees, name
        assert found.sampled > 0, name
        assert not noise_flips(u, noisy.spikes[name], 3 * sigma).agrees, "the check can fail"


def test_flips_by_the_attack_are_counted_one_by_one() -> None:
    u, attacked = draw(3, 4, 5), draw(3, 4, 5, seed=1)
    found = attack_flips(u, attacked, 0.3, seed=0)
    values = list(zip(u.flatten().tolist(), attacked.flatten().tolist(), strict=True))
    flipped = [(a, b) for a, b in values if (a >= 0) != (b >= 0)]
    assert found.flipped == pytest.approx(len(flipped) / len(values))
    assert found.distance == pytest.approx(sum(abs(a) for a, _ in flipped) / len(flipped))
    assert found.shift == pytest.approx(sum(abs(b - a) for a, b in values) / len(values))
    assert found.common < found.independent
    chance = fire_chance(torch.tensor([0.2, -0.1]), 0.3)
    one = attack_flips(torch.tensor([0.2]), torch.tensor([-0.1]), 0.3, seed=0)
    p, q = chance.tolist()
    assert one.common == pytest.approx(p - q)
    assert one.independent == pytest.approx(p * (1 - q) + q * (1 - p))


def test_common_and_independent_noise_flip_what_the_formulas_say() -> None:
    u, attacked, sigma = torch.tensor([0.2]), torch.tensor([-0.1]), 0.3
    found = attack_flips(u, attacked, sigma, seed=0)
    first, second = sigma * draw(200_000), sigma * draw(200_000, seed=1)
    common = ((u + first >= 0) != (attacked + first >= 0)).double().mean()
    independent = ((u + first >= 0) != (attacked + second >= 0)).double().mean()
    assert float(common) == pytest.approx(found.common, abs=0.006)
    assert float(independent) == pytest.approx(found.independent, abs=0.006)


def test_held_spikes_are_those_of_the_clean_image(tiny: Classifier, pair: Pair) -> None:
    x, _ = pair
    clean, other = read(tiny, x, 3), (x + 0.2 * draw(*x.shape)).clamp(0, 1)
    assert not torch.equal(read(tiny, other, 3).logits, clean.logits)
    everything = {n: torch.where(s, torch.inf, -torch.inf) for n, s in clean.spikes.items()}
    held = read(tiny, other, 3, held=everything)
    assert all(torch.equal(held.spikes[name], fired) for name, fired in clean.spikes.items())
    assert torch.equal(held.logits, clean.logits)
    nothing = {n: torch.zeros_like(u) for n, u in clean.u.items()}
    assert torch.equal(read(tiny, other, 3, held=nothing).logits, read(tiny, other, 3).logits)


def test_holding_everything_brings_every_image_back_and_holding_nothing_none(
    tiny: Classifier, pair: Pair
) -> None:
    x, y = pair
    clean, attacked = read(tiny, x, 7), sg.pgd(tiny, x, y, sg.Linf(0.3), steps=5).x
    broken = float((tiny(attacked).argmax(1) == y).double().mean())
    none, all_of_them = held_rows(tiny, attacked, y, clean, (0.0, 1.0), 7, seed=0)
    for got in (none.nearest, none.at_random, none.farthest):
        assert got.value == pytest.approx(broken)
    for got in (all_of_them.nearest, all_of_them.at_random, all_of_them.farthest):
        assert got.value == 1.0


def test_a_share_that_is_held_is_nearest_first(tiny: Classifier, pair: Pair) -> None:
    clean = read(tiny, pair[0], 7)
    for name, push in holds(clean, lambda size: size, 0.25).items():
        size, held = clean.u[name].abs(), torch.isinf(push)
        for image in range(len(pair[0])):
            inside, outside = size[:, image][held[:, image]], size[:, image][~held[:, image]]
            assert len(inside) == round(0.25 * (len(inside) + len(outside)))
            assert inside.max() <= outside.min()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(2, 4, 3, padding=1), (2, 2, 6, 7)),
        (nn.Conv2d(4, 6, (3, 2), stride=2, groups=2), (2, 4, 6, 7)),
        (nn.Conv2d(2, 2, 3, dilation=2, padding="same"), (2, 2, 6, 7)),
        (nn.Conv1d(2, 3, 3, padding=2), (2, 2, 9)),
        (nn.Linear(7, 3), (2, 7)),
    ],
)
def test_operations_are_counted_as_by_hand(
    layer: nn.Conv2d | nn.Conv1d | nn.Linear, shape: tuple[int, ...]
) -> None:
    """The derivative of a sum of products counts them, if all weights are one and no input cancels."""
    used = (draw(*shape) > 0.3).float()
    with torch.no_grad():
        layer.weight.fill_(1.0)
        assert layer.bias is not None
        layer.bias.zero_()
        by_hand = float(layer(used).sum())
    assert pairs(layer, used) == pytest.approx(by_hand)


def test_spikes_cost_accumulates_and_pixels_multiplies() -> None:
    first, last = nn.Linear(3, 2, bias=False), nn.Linear(2, 5, bias=False)
    with torch.no_grad():
        first.weight.fill_(1.0)
    net = nn.Sequential(first, nn.Hardtanh(0, 1), last)
    found = energy(net, torch.tensor([[0.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), batch_size=1)
    assert found.multiplies == 2 * 2 / 2, "two pixels of one image, of two, times two weights"
    assert found.accumulates == 2 * 5 / 2, "both neurons of that image fire into five"
    assert found.dense_multiplies == 3 * 2 + 2 * 5
    assert found.picojoules == pytest.approx(0.9 * 5 + 4.6 * 2)


def test_pooled_spikes_count_as_the_spikes_they_sum() -> None:
    net = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(1, 3, 1, bias=False), nn.AvgPool2d((1, 2)), nn.Flatten())
    spikes = torch.tensor([[[[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]]]])
    found = energy(net, spikes, batch_size=1)
    assert (found.accumulates, found.multiplies) == (4 * 3, 0)
    assert energy(net, spikes / 3, batch_size=1).multiplies == 2 * 3


def test_the_largest_singular_value_is_that_of_the_jacobian(tiny: Classifier, pair: Pair) -> None:
    x, y = pair
    with torch.no_grad():
        tiny.double()
    found = gradients(tiny, x.double(), y, 3)
    largest, l1 = [], []
    for image, label in zip(x.double(), y, strict=True):
        point = image[None].clone().requires_grad_()
        logits = tiny(point)
        rows = [torch.autograd.grad(v, point, retain_graph=True)[0].flatten() for v in logits[0]]
        largest.append(float(torch.linalg.svdvals(torch.stack(rows))[0]))
        (g,) = torch.autograd.grad(margin(logits, label[None]).sum(), point)
        l1.append(float(g.abs().sum()))
    assert found.pixels.spectral == pytest.approx(sum(largest) / len(largest), rel=1e-6)
    assert found.l1.tolist() == pytest.approx(l1, rel=1e-6)
    assert set(found.layers) == set(read(tiny, x.double(), 7).u)
    assert all(row.l1 > 0 for row in found.layers.values())


def test_patterns_are_those_that_differ(tiny: Classifier, pair: Pair) -> None:
    x, y = pair
    clean = read(tiny, x, 7)
    alone, _ = sampled(tiny, clean, x, y, sg.Linf(1e-9), draws=4, batch_size=7, seed=0)
    assert alone.patterns == 1.0
    assert alone.change < 1e-3
    far, change = sampled(tiny, clean, x, y, sg.Linf(0.5), draws=4, batch_size=7, seed=0)
    assert far.patterns == 5.0
    assert float(change.mean()) == pytest.approx(far.change)
