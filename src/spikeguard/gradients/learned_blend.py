"""A blend of several estimators' gradients; its weights are learned, pixel by pixel, during the attack.

    b = sum_k a_k g_k                          g_k: gradients, each of mean absolute value 1 in a sample
    a_k <- a_k + rate * b' * (1 - tanh(b)^2) * g_k

A step along ``tanh(b)``, a softened sign, leads to the next point, where the blend is ``b'``. So the second
line is gradient ascent on the loss there, by the chain rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spikeguard.arguments import checked_fields
from spikeguard.errors import UserError
from spikeguard.gradients.base import Estimator, Gradient, Opened
from spikeguard.gradients.surrogate import SwapSurrogate
from spikeguard.losses import Loss
from spikeguard.models import Model
from spikeguard.surrogates import Atan, Rectangle, StraightThrough, Triangle

SOURCES: tuple[Estimator, ...] = (
    SwapSurrogate(Atan(4.0)),
    SwapSurrogate(Triangle(0.5)),
    SwapSurrogate(Rectangle(1.0)),
    SwapSurrogate(StraightThrough()),
)
"""What ``LearnedBlend`` blends: surrogates of different widths and shapes."""


@dataclass
class LearnedBlendOpened(Opened):
    """Per sample: ``weights`` ``[N, K, ...]``, the last ``gradients`` like them, the last ``blend``."""

    sources: list[Opened] = field(default_factory=list)
    rate: float = 0.1
    weights: Tensor | None = None
    gradients: Tensor | None = None
    blend: Tensor | None = None
    frozen: bool = False

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> Gradient:
        found = [source(x, y, loss) for source in self.sources]
        self.forwards += len(found) * len(x)
        self.backwards += len(found) * len(x)
        gradients = torch.stack([_of_mean_one(gradient) for gradient, _, _ in found], 1)
        weights = torch.full_like(gradients, 1 / len(found)) if self.weights is None else self.weights
        blend = (weights * gradients).sum(1)
        if not self.frozen:
            if self.gradients is not None and self.blend is not None:
                slope = (blend * (1 - self.blend.tanh().square())).unsqueeze(1)
                weights = weights + self.rate * slope * self.gradients
                blend = (weights * gradients).sum(1)
            self.weights, self.gradients, self.blend = weights, gradients, blend
        return blend, found[0][1], found[0][2]

    def select(self, rows: Tensor) -> None:
        for source in self.sources:
            source.select(rows)
        if self.weights is not None and self.gradients is not None and self.blend is not None:
            self.weights, self.gradients = self.weights[rows], self.gradients[rows]
            self.blend = self.blend[rows]

    def freeze(self, frozen: bool) -> None:
        self.frozen = frozen
        for source in self.sources:
            source.freeze(frozen)


def _of_mean_one(gradient: Tensor) -> Tensor:
    """Scaled to a mean absolute value of 1 in every sample; a gradient of 0 stays."""
    size = gradient.abs().flatten(1).mean(1).clamp(min=1e-30)
    return gradient / size.view(-1, *[1] * (gradient.dim() - 1))


@dataclass(frozen=True)
@checked_fields
class LearnedBlend:
    """A blend of gradients with a learned weight for every source and pixel.

    ``sources``: the estimators that are blended; each costs its own passes. ``rate``: the learning rate of
    the weights, for gradients of mean absolute value 1. UserError on fewer than two sources or a negative
    rate. After MDSE (Neurocomputing 2025); scale and rate are ours.

    >>> blend = sg.gradients.LearnedBlend(rate=0.2)
    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=3, restarts=1, gradient=blend)
    >>> found.x.shape == x.shape
    True
    """

    sources: tuple[Estimator, ...] = SOURCES
    rate: float = 0.1

    def __post_init__(self) -> None:
        if len(self.sources) < 2 or not self.rate >= 0:
            raise UserError(
                f"LearnedBlend: {len(self.sources)} sources must be at least 2, rate = {self.rate} must be 0 "
                "or more"
            )

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        with ExitStack() as stack:
            sources = [stack.enter_context(source.open(model)) for source in self.sources]
            yield LearnedBlendOpened(model, sources=sources, rate=self.rate)
