"""Attacks against mathematics: where the smallest disturbance, all inputs, or a certificate are known."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.auditing.suite import SUITES

# one spiking neuron, constant input: it fires in a step or not, and at which input is known


class OneNeuron(nn.Module):
    """Two classes from the rate of one LIF neuron whose current is the mean pixel times a gain.

    Class 1 once it fires at least ``wanted`` times.
    """

    def __init__(self, wanted: int, steps: int = 4, decay: float = 0.5, gain: float = 3.0) -> None:
        super().__init__()
        self.wanted, self.steps, self.decay, self.gain = wanted, steps, decay, gain
        self.fire = sg.LIF(decay=decay, surrogate=sg.surrogates.Atan(2.0))

    def forward(self, x: Tensor) -> Tensor:
        current = self.gain * x.flatten(1).mean(1, keepdim=True)
        count = self.fire(current[None], self.steps).sum(0)
        return torch.cat([torch.zeros_like(count), count - (self.wanted - 0.5)], 1)

    def threshold(self) -> float:
        """The smallest mean pixel at which it fires ``wanted`` times.

        Each cycle of charge ``c (1 + d + ...)`` must reach 1 within its steps.
        """
        period = self.steps // self.wanted
        return 1.0 / (self.gain * sum(self.decay**k for k in range(period)))


@pytest.mark.parametrize("wanted", [1, 2, 4])
def test_one_neuron_is_broken_exactly_beyond_its_distance(wanted: int) -> None:
    """Every pixel may move by eps, so the mean does.

    Class 0 turns into 1 if mean + eps reaches the threshold.
    """
    model = OneNeuron(wanted).eval()
    border = model.threshold()
    means = torch.linspace(border - 0.1, border - 0.004, 60)
    x = means.view(-1, 1, 1, 1).expand(60, 1, 3, 3).contiguous()
    y = torch.zeros(60, dtype=torch.int64)
    assert (model(x).argmax(1) == 0).all()
    eps = 0.05
    breakable = means + eps >= border
    clear = (means + eps - border).abs() > 1e-4
    assert 0.2 < float(breakable.float().mean()) < 0.8
    got = sg.audit(model, x, y, sg.Linf(eps), effort="quick")
    broken = torch.tensor(got.record.first_by) >= 0
    assert torch.equal(broken[clear], breakable[clear])
    assert got.robust_accuracy == pytest.approx(1 - float(breakable.double().mean()), abs=1 / 60 + 1e-9)


# all inputs of a small binary world


class Binary(nn.Module):
    """A spiking network on eight pixels of which each counts as on or off."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.fire, self.last = nn.Linear(8, 24), sg.LIF(decay=0.5), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        bits = (x.flatten(1) >= 0.5).to(x) + x.flatten(1) - x.flatten(1).detach()  # straight through
        logits: Tensor = self.last(self.fire(4 * self.first(bits)[None], 3).mean(0))
        return logits


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_never_better_than_exhaustive_search_and_seldom_worse(seed: int) -> None:
    """Pixels at 0.4 and 0.6, budget 0.15 on four of them, 0 on none: every corner is tried."""
    model = Binary(seed).eval()
    x = 0.4 + 0.2 * torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))[::4].view(-1, 1, 2, 4)
    y = model(x).argmax(1)
    eps = torch.where(torch.arange(len(x)) % 2 == 0, 0.15, 0.05)  # 0.05 flips no pixel
    possible = torch.zeros(len(x), dtype=torch.bool)
    for corner in itertools.product((-1.0, 1.0), repeat=8):
        moved = (x + eps.view(-1, 1, 1, 1) * torch.tensor(corner).view(1, 1, 2, 4)).clamp(0, 1)
        possible |= model(moved).argmax(1) != y
    assert not possible[1::2].any()
    got = sg.audit(model, x, y, sg.Linf(eps), effort="quick")
    broken = torch.tensor(got.record.first_by) >= 0
    assert not (broken & ~possible).any()
    assert int(broken.sum()) >= 0.9 * int(possible.sum()) > 0


# a certificate: interval bounds through currents, potentials and spikes


def interval_logits(net: "Certified", low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of the logits of ``Certified`` for inputs in [low, high].

    Spikes in {0, 1} where the potential's interval meets the threshold.
    """

    def affine(layer: nn.Linear, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        center, radius = (low + high) / 2, (high - low) / 2
        middle, spread = layer(center), radius @ layer.weight.abs().T
        return middle - spread, middle + spread

    current = affine(net.first, low, high)
    v_low, v_high, total = torch.zeros_like(current[0]), torch.zeros_like(current[0]), []
    for _ in range(net.steps):
        h_low, h_high = net.decay * v_low + current[0], net.decay * v_high + current[1]
        s_low, s_high = (h_low >= 1).double(), (h_high >= 1).double()
        stays_low, stays_high = (
            torch.where(h_low < 1, h_low, 0.0),
            torch.where(h_high < 1, h_high, torch.where(s_low > 0, 0.0, 1.0)),
        )
        v_low = torch.where(s_high > 0, torch.minimum(stays_low, torch.zeros_like(h_low)), h_low)
        v_high = torch.where(
            s_low > 0, torch.zeros_like(h_high), torch.maximum(stays_high, torch.zeros_like(h_high))
        )
        v_high = torch.where(s_high > 0, v_high, h_high)
        total.append(affine(net.last, s_low, s_high))
    return torch.stack([t[0] for t in total]).mean(0), torch.stack([t[1] for t in total]).mean(0)


class Certified(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.steps, self.decay = 3, 0.5
        self.first, self.last = nn.Linear(9, 20), nn.Linear(20, 3)
        self.fire = sg.LIF(decay=self.decay, surrogate=sg.surrogates.Atan(2.0))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.fire(self.first(x.flatten(1))[None], self.steps)).mean(0)
        return logits


def test_a_certified_sample_is_never_broken() -> None:
    """S-IBP: whoever the bounds say is safe, no attack of the suite breaks; and both kinds occur."""
    net = Certified().double().eval()
    with torch.no_grad():
        net.first.weight.mul_(4)
    x = torch.rand(150, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(1)
    eps = 0.02
    flat = x.flatten(1)
    with torch.no_grad():
        low, high = interval_logits(net, (flat - eps).clamp(0, 1), (flat + eps).clamp(0, 1))
        inside_low, inside_high = interval_logits(net, flat, flat)
        logits = net(x)
    torch.testing.assert_close(inside_low, logits)
    torch.testing.assert_close(inside_high, logits)
    best_other = high.scatter(1, y[:, None], -torch.inf).amax(1)
    certified = low.gather(1, y[:, None])[:, 0] > best_other
    broken = torch.zeros(150, dtype=torch.bool)
    chosen = [m for m in SUITES["standard"] if not m.needs][:9] + [
        m for m in SUITES["standard"] if m.attack in (sg.rays, sg.random_search)
    ]
    for member in chosen:
        broken |= member.run(net, x, y, sg.Linf(eps), 0, torch.arange(150)).broken
    assert certified.sum() > 20
    assert broken.sum() > 20
    assert not (certified & broken).any()
