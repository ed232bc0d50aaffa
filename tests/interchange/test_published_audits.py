"""A published network, its neurons written as its authors write them, and its import: the same worst case."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from narrow import applied, as_a
from published import Fires, Published, RatWRN, TetVGG, randomized
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.gradients import BPDA, Estimator, Own, SwapSurrogate
from spikeguard.interchange import import_state
from spikeguard.losses import margin
from spikeguard.surrogates import Atan


class KeepsMembrane(torch.autograd.Function):
    """Fires above 1; a triangle for its derivative."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return v.gt(1.0).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return as_a(Tensor, grads[0] * (1 - (v - 1).abs()).clamp(min=0))


class KeepsDerivative(torch.autograd.Function):
    """Fires at 1; its derivative is computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward((1 - (v - 1).abs()).clamp(min=0))
        return v.ge(1.0).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return as_a(Tensor, grads[0] * ctx.saved_tensors[0])


class Written(Fires):
    def fire(self, potential: Tensor) -> Tensor:
        return applied(KeepsMembrane if self.above else KeepsDerivative, potential)


class Tet(TetVGG):
    """VGG-9 of TET on images of one channel."""

    mean, std = 0.45, 0.25

    def __init__(self) -> None:
        super().__init__(pooled=False, steps=3, inputs=1)

    def fires(self) -> Fires:
        return Written(self.steps, self.decay, self.above)


class Rat(RatWRN):
    """WRN-16 of SNN-RAT."""

    def fires(self) -> Fires:
        return Written(self.steps, self.decay, self.above)


NETWORKS: dict[str, tuple[Callable[[], Published], str, tuple[int, int, int]]] = {
    "tet": (Tet, "tet/vggsnn", (1, 16, 16)),
    "snn-rat": (Rat, "snn-rat/wrn16", (3, 8, 8)),
}
Pair = tuple[nn.Module, nn.Module, Tensor, Tensor]


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request: pytest.FixtureRequest) -> Pair:
    """A network in plain torch after a short training, its import, images and labels."""
    torch.manual_seed(3)
    torch.set_num_threads(1)
    make, layout, shape = NETWORKS[request.param]
    y = torch.arange(16) % 4
    x = (0.25 + 0.5 * torch.rand(4, *shape)[y] + 0.1 * torch.randn(16, *shape)).clamp(0, 1)
    there = randomized(make()).train()
    adam = torch.optim.Adam(there.parameters(), 0.01)
    for _ in range(15):
        adam.zero_grad()
        F.cross_entropy(there(x), y).backward()
        adam.step()
    for layer in there.modules():
        if isinstance(layer, Fires):
            layer.fired.clear()
    here = import_state(
        there.eval().state_dict(),
        layout,
        timesteps=there.steps,
        mean=(there.mean,),
        std=(there.std,),
        in_shape=shape,
    )
    return there, here, x, y


ESTIMATORS: dict[str, Estimator] = {
    "own": Own(),
    "swapped": SwapSurrogate(Atan(2.0)),
    "opened": BPDA(Atan(4.0)),
}
"""ASSG is another one here: of each neuron in networks of our own, of each layer in others."""


@pytest.mark.parametrize("name", ESTIMATORS)
def test_both_have_the_same_gradients(name: str, pair: Pair) -> None:
    *nets, x, y = pair
    there, here = (gradient(net, ESTIMATORS[name], x, y) for net in nets)
    assert float(F.cosine_similarity(there, here, 1).min()) > 0.999


def gradient(net: nn.Module, estimator: Estimator, x: Tensor, y: Tensor) -> Tensor:
    with estimator.open(net) as opened:
        return opened(x, y, margin)[0].flatten(1)


def test_attacks_leave_the_same_images_of_both(pair: Pair) -> None:
    """The worst case of three sources of gradients, image by image."""
    *nets, x, y = pair
    for eps in (0.1, 0.3):
        there, here = (broken(net, x, y, eps) for net in nets)
        assert torch.equal(there, here)
    assert there.any()


def broken(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return torch.stack(
        [
            sg.pgd(net, x, y, sg.Linf(eps), steps=3, restarts=1, gradient=estimator).broken
            for estimator in ESTIMATORS.values()
        ]
    ).any(0)
