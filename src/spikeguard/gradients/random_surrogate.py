"""A surrogate drawn at random for every layer at every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from spikeguard.arguments import checked_fields
from spikeguard.gradients.base import Gradient, Opened
from spikeguard.gradients.surrogate import SwapOpened
from spikeguard.losses import Loss
from spikeguard.models import Model
from spikeguard.random import draws
from spikeguard.surrogates import (
    Atan,
    Gaussian,
    Rectangle,
    Sigmoid,
    StraightThrough,
    Surrogate,
    Triangle,
)

SURROGATE_POOL: tuple[Surrogate, ...] = (
    Atan(2.0),
    Atan(8.0),
    Triangle(0.5),
    Triangle(2.0),
    Rectangle(1.0),
    Sigmoid(4.0),
    Gaussian(0.5),
    StraightThrough(),
)
"""What ``RandomSurrogate`` draws from."""


@dataclass(frozen=True)
@checked_fields
class RandomSurrogate:
    """A surrogate drawn at random from ``pool`` for every layer at every step (ours).

    The draw depends on ``seed``, the layer's name and the number of the gradient.

    >>> varied = sg.gradients.RandomSurrogate(seed=3)
    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=2, restarts=1, gradient=varied)
    >>> found.x.shape == x.shape
    True
    """

    seed: int = 0
    pool: tuple[Surrogate, ...] = SURROGATE_POOL

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        yield RandomSurrogateOpened(model, seed=self.seed, pool=self.pool)


@dataclass
class RandomSurrogateOpened(SwapOpened):
    """Counts its gradients, which are part of the key of its draws."""

    seed: int = 0
    pool: tuple[Surrogate, ...] = SURROGATE_POOL
    calls: int = 0
    frozen: bool = False

    def __post_init__(self) -> None:
        self.choose = lambda name: self.pool[draws.key(self.seed, name, self.calls) % len(self.pool)]

    def freeze(self, frozen: bool) -> None:
        self.frozen = frozen

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> Gradient:
        self.calls += not self.frozen
        return super().__call__(x, y, loss)
