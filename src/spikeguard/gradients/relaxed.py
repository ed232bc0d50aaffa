"""Gradients of a smoother relative of the model, while every point is evaluated on the model itself.

Relatives: the network with soft spikes (their slope rises over the attack), with the firing probabilities of
noisy neurons (mean field), with ReLU instead of neurons (the twin that shares its weights), without its
noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from spikeguard.adapters.tap import tap
from spikeguard.arguments import checked_fields
from spikeguard.errors import UserError
from spikeguard.gradients.base import Gradient, Opened, as_module, derive
from spikeguard.losses import Loss
from spikeguard.models import Model
from spikeguard.neurons import spiking
from spikeguard.surrogates import Gaussian, Sigmoid, Surrogate

Context = AbstractContextManager[object]


@dataclass
class RelaxedOpened(Opened):
    """``around(k)``: the context that turns the model into its relative, at gradient number k."""

    around: Callable[[int], Context] = lambda k: nullcontext()
    calls: int = 0
    frozen: bool = False

    def freeze(self, frozen: bool) -> None:
        self.frozen = frozen

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> Gradient:
        self.calls += not self.frozen
        with self.around(self.calls - 1):
            gradient = derive(self.model, x, y, loss)[0]
        return self.with_model_loss(gradient, x, y, loss)


@dataclass(frozen=True)
@checked_fields
class SoftSpikes:
    """The network with soft spikes, whose slope rises from ``first`` to ``last`` over ``steps`` gradients.

    Spikes become sigmoids of that slope, so that the relative approaches the network. UserError unless
    ``0 < first <= last`` and ``steps >= 1``.

    >>> soft = sg.gradients.SoftSpikes(steps=2)
    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=2, restarts=1, gradient=soft)
    >>> found.x.shape == x.shape
    True
    """

    part: ClassVar[str] = "soft steps"
    first: float = 2.0
    last: float = 16.0
    steps: int = 20

    def __post_init__(self) -> None:
        if not (0 < self.first <= self.last and self.steps >= 1):
            raise UserError(
                f"SoftSpikes: needs 0 < first <= last and steps >= 1, got first = {self.first}, "
                f"last = {self.last}, steps = {self.steps}"
            )

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        net = as_module(model, "SoftSpikes")

        def around(k: int) -> Context:
            share = min(k / max(self.steps - 1, 1), 1.0)
            return tap(net, smooth=True, surrogate=Sigmoid(self.first * (self.last / self.first) ** share))

        yield RelaxedOpened(model, around=around)


@dataclass(frozen=True)
@checked_fields
class MeanField:
    """Firing probabilities ``Phi(u / sigma)`` instead of spikes.

    ``sigma``: each layer's own noise, this value where it has none, in units of the potential. UserError
    unless it is above 0.

    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=2, restarts=1, gradient=sg.gradients.MeanField())
    >>> found.x.shape == x.shape
    True
    """

    part: ClassVar[str] = "soft steps"
    sigma: float = 0.2

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise UserError(f"MeanField: sigma = {self.sigma} must be above 0")

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        net = as_module(model, "MeanField")
        layers = spiking(net)

        def law(name: str) -> Surrogate:
            noise = layers[name].noise if name in layers else None
            return Gaussian(noise.sigma if noise and noise.sigma else self.sigma)

        yield RelaxedOpened(model, around=lambda k: tap(net, smooth=True, surrogate=law, noise=0.0))


@dataclass(frozen=True)
class ReLUTwin:
    """ReLU in place of the neurons, weights shared: the 'CBA' of Ozdenizci and Legenstein, TMLR 2024.

    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=2, restarts=1, gradient=sg.gradients.ReLUTwin())
    >>> found.x.shape == x.shape
    True
    """

    part: ClassVar[str] = "sequences"

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        net = as_module(model, "ReLUTwin")
        yield RelaxedOpened(model, around=lambda k: tap(net, relu=True))


@dataclass(frozen=True)
@checked_fields
class NoiseFree:
    """The network without its noise, with the neurons' own surrogate or another one.

    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=2, restarts=1, gradient=sg.gradients.NoiseFree())
    >>> found.x.shape == x.shape
    True
    """

    surrogate: Surrogate | None = None

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        net = as_module(model, "NoiseFree")
        yield RelaxedOpened(model, around=lambda k: tap(net, noise=0.0, surrogate=self.surrogate))
