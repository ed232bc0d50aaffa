"""Estimators that change neurons give on SpikingJelly's network what they give on the same one of ours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.auditing.suite import FULL, MISSING, REASONS, members
from spikeguard.gradients import Estimator
from spikeguard.gradients.surrogate import neuron_traits
from spikeguard.losses import ce

STEPS = 4
SEQUENCES: list[Estimator] = [sg.gradients.BPTR(), sg.gradients.RGA(), sg.gradients.HART(0.5)]
ESTIMATORS: list[Estimator] = [
    *SEQUENCES,
    sg.gradients.SoftSpikes(),
    sg.gradients.MeanField(),
    sg.gradients.ReLUTwin(),
    sg.gradients.ThresholdFirst(pull=1),
    sg.gradients.Activity(),
    sg.gradients.PerStep(),
    sg.gradients.SwapSurrogate(sg.surrogates.Atan(4.0), detach_reset=False),
    sg.gradients.SwapSurrogate(sg.surrogates.Atan(4.0), detach_reset=True),
]


class Net(nn.Module):
    """Two layers of neurons between three linear ones, over a constant image; each neuron has a tau of 2."""

    def __init__(self, ours: bool, mode: str = "m") -> None:
        super().__init__()
        torch.manual_seed(7)
        self.ours, self.mode = ours, mode
        self.first, self.second, self.last = nn.Linear(16, 20), nn.Linear(20, 20), nn.Linear(20, 5)
        for lin in (self.first, self.second):
            nn.init.normal_(lin.weight, std=0.8)
        self.fires = nn.ModuleList([self.neurons(ours) for _ in range(2)])

    def neurons(self, ours: bool) -> nn.Module:
        if ours:
            return sg.LIF(decay=0.5, surrogate=sg.surrogates.Atan(2.0))
        neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
        atan = pytest.importorskip("spikingjelly.activation_based.surrogate").ATan
        made: nn.Module = neuron.LIFNode(tau=2.0, step_mode=self.mode, surrogate_function=atan())
        return made

    def forward(self, x: Tensor, per_step: bool = False) -> Tensor:
        sg.adapters.reset(self)
        scale = 0.5 if self.ours else 1.0  # SpikingJelly's neurons integrate x / tau
        z = x.flatten(1).expand(STEPS, len(x), 16)
        if self.mode == "s":
            steps = [self.last(self.fires[1](self.second(self.fires[0](self.first(step))))) for step in z]
            out = torch.stack(steps)
        else:
            z = self.fires[0](self.first(z) * scale)
            out = self.last(self.fires[1](self.second(z) * scale))
        return out if per_step else out.mean(0)


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(6, 1, 4, 4, generator=generator), torch.arange(6) % 5


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=[repr(e)[:40] for e in ESTIMATORS])
def test_the_gradient_is_that_of_the_same_network_of_ours(
    estimator: Estimator, images: tuple[Tensor, Tensor]
) -> None:
    found = []
    for ours in (True, False):
        net = Net(ours).eval()
        with estimator.open(net) as opened:
            found.append([t for _ in range(2) for t in opened(*images, ce)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        assert float(mine.abs().sum()) > 0


def left_out(net: nn.Module) -> dict[str, str]:
    traits = neuron_traits(net) | {"noise", "no gradient", "no logits"}
    return members("full", sg.Linf(8 / 255), traits)[1]


def test_no_member_is_left_out_for_a_network_of_whole_sequences() -> None:
    assert left_out(Net(ours=True)) == {}
    assert left_out(Net(ours=False)) == {}
    assert any(m.needs == "neurons" for m in FULL)


def test_a_network_stepped_from_outside_leaves_out_sequences_and_says_why() -> None:
    left = left_out(Net(ours=False, mode="s"))
    assert set(left.values()) == {MISSING["sequences"]}
    assert {m.gradient for m in FULL if m.id in left} >= set(SEQUENCES)


def test_networks_without_known_neurons_leave_out_all_of_them() -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    refused = nn.Sequential(nn.Linear(4, 4), neuron.ILIFNode())
    for model in (nn.Linear(2, 2), refused, lambda x: x):
        assert neuron_traits(model) == frozenset()
        left = members("full", sg.Linf(8 / 255), frozenset())[1]
        assert REASONS["neurons"] in left.values()


def test_potentials_are_read_without_an_adapter(images: tuple[Tensor, Tensor]) -> None:
    """The general way gives what the tap reads, the last call last."""
    net = Net(ours=False, mode="s")
    with sg.tap(net) as tapped:
        net(images[0])
    found = sg.gradients.read_potentials(net, images[0])
    want = [u[t] for t in range(STEPS) for u in tapped.potentials.values()]
    assert len(found) == len(want)
    for u in want:
        assert sum(torch.equal(u, other) for other in found) == 1
    assert torch.equal(found[-1], want[-1])


def test_a_potential_that_cannot_be_read_is_an_error(images: tuple[Tensor, Tensor]) -> None:
    weight = torch.randn(16, 5)

    class Drawn(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, u: Tensor) -> Tensor:
            return torch.bernoulli(torch.sigmoid(u))

        @staticmethod
        def backward(ctx: object, *grads: Tensor) -> Tensor:
            return grads[0]

    def model(x: Tensor) -> Tensor:
        spikes: Tensor = Drawn.apply(x.flatten(1) @ weight)  # type: ignore[no-untyped-call]
        return spikes @ torch.eye(5)

    with pytest.raises(sg.UserError, match="Drawn cannot be read"):
        sg.gradients.read_potentials(model, images[0])
