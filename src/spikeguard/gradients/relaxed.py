"""Gradients borrowed from a kinder relative of the model, while every point is judged on the model itself.

Relatives: the network with soft spikes (their slope rising over the attack), with the firing probabilities of
noisy neurons (mean field), with ReLU instead of neurons (the twin that shares its weights), without its
noise; or another network altogether (transfer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spikeguard.errors import UserError
from spikeguard.gradients.base import Estimator, Opened, Own, as_module, derive
from spikeguard.gradients.transfer import TransferOpened
from spikeguard.losses import Loss
from spikeguard.models import Model
from spikeguard.neurons import spiking
from spikeguard.neurons.tap import tap
from spikeguard.surrogates import Gaussian, Sigmoid, Surrogate

Context = AbstractContextManager[object]


@dataclass
class _Borrowed(Opened):
    """``around(k)``: the context that makes the relative, at gradient number k."""

    around: Callable[[int], Context] = lambda k: nullcontext()
    calls: int = 0
    frozen: bool = False

    def freeze(self, frozen: bool) -> None:
        self.frozen = frozen

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        self.calls += not self.frozen
        with self.around(self.calls - 1):
            gradient = derive(self.model, x, y, loss)[0]
        return self.judged(gradient, x, y, loss)


@dataclass(frozen=True)
class SoftSpikes:
    """Soft spikes of a sigmoid whose slope rises from ``first`` to ``last`` over ``steps`` gradients.

    A network ever more alike.
    """

    first: float = 2.0
    last: float = 16.0
    steps: int = 20

    def __post_init__(self) -> None:
        if not (0 < self.first <= self.last and self.steps >= 1):
            raise UserError(
                f"soft: needs 0 < first <= last and steps >= 1, got {self.first}, {self.last}, {self.steps}"
            )

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        net = as_module(model, "soft")

        def around(k: int) -> Context:
            share = min(k / max(self.steps - 1, 1), 1.0)
            return tap(net, smooth=True, surrogate=Sigmoid(self.first * (self.last / self.first) ** share))

        yield _Borrowed(model, around=around)


@dataclass(frozen=True)
class MeanField:
    """Firing probabilities ``Phi(u / sigma)`` instead of spikes.

    ``sigma`` is each layer's own noise, or this where it has none.
    """

    sigma: float = 0.2

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise UserError(f"mean_field: sigma = {self.sigma} must be above 0")

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        net = as_module(model, "mean_field")
        layers = spiking(net)

        def law(name: str) -> Surrogate:
            noise = layers[name].noise
            return Gaussian(noise.sigma if noise and noise.sigma else self.sigma)

        yield _Borrowed(model, around=lambda k: tap(net, smooth=True, surrogate=law, noise=0.0))


@dataclass(frozen=True)
class ReLUTwin:
    """ReLU in place of the neurons, weights shared; the 'CBA' of Ozdenizci and Legenstein, TMLR 2024."""

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        net = as_module(model, "relu_twin")
        yield _Borrowed(model, around=lambda k: tap(net, relu=True))


@dataclass(frozen=True)
class NoiseFree:
    """The network without its noise, through any surrogate."""

    surrogate: Surrogate | None = None

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        net = as_module(model, "still")
        yield _Borrowed(model, around=lambda k: tap(net, noise=0.0, surrogate=self.surrogate))


class _PerStep(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x, per_step=True)
        return logits


@dataclass(frozen=True)
class PerStep:
    """The loss at every time step's own logits, averaged (TET), of any estimator; for networks of ours.

    Deng et al., ICLR 2022.
    """

    inner: Estimator = field(default_factory=Own)

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        with self.inner.open(_PerStep(as_module(model, "each_step")).eval()) as inner:
            yield _EachStep(model, inner=inner)


@dataclass
class _EachStep(TransferOpened):
    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        def averaged(logits: Tensor, y: Tensor) -> Tensor:
            return torch.stack([loss(z, y) for z in logits]).mean(0)

        gradient, value, logits = self.inner(x, y, averaged)
        self.forwards += len(x)
        self.backwards += len(x)
        return gradient, value, logits.mean(0)
