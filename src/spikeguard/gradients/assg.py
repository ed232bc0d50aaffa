"""Adaptive sharpness surrogate gradient: each neuron's surrogate is as wide as its own potentials are spread.

    M <- 0.9 M + 0.1 |u|,  D <- 0.9 D + 0.1 ||u| - M|,  a = omega / (M + 1.5 D + 1e-4),  derivative = a k(a u)

M starts at 1, D at 0; both are kept per layer, time step, sample and neuron over the steps of an attack, and
start anew at each restart. For atan omega = 2/pi tan(pi strength), else omega = strength. arXiv 2512.22522
(CVPR 2026). In networks of other frameworks M and D are means over each call of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spikeguard.arguments import checked_fields
from spikeguard.errors import UserError
from spikeguard.gradients.base import Opened
from spikeguard.gradients.surrogate import SwapOpened, known
from spikeguard.kernels.running import adapt
from spikeguard.models import Model
from spikeguard.surrogates import Atan, Stretched, Surrogate


class AdaptiveSharpness(Surrogate):
    """A surrogate whose sharpness follows the running mean and deviation of ``|u|``.

    ``pooled``: of its mean over all neurons and samples. ``start_from_first``: the mean starts at the first
    ``|u|`` instead of at 1.
    """

    def __init__(
        self, shape: Stretched, omega: float, pooled: bool = False, start_from_first: bool = False
    ) -> None:
        self.shape, self.omega, self.pooled, self.start_from_first = shape, omega, pooled, start_from_first
        self.frozen = False
        self.mean: Tensor | None = None
        self.deviation: Tensor | None = None

    def kernel(self) -> Surrogate:
        return self.shape.kernel()

    def observe(self, u: Tensor) -> Tensor:
        if self.mean is None or self.deviation is None:
            like = u.abs().mean() if self.pooled else u
            self.mean = like.abs() if self.start_from_first else torch.ones_like(like)
            self.deviation = torch.zeros_like(like)
        if not self.frozen and self.pooled:
            self.mean = 0.9 * self.mean + 0.1 * u.abs().mean()
            self.deviation = 0.9 * self.deviation + 0.1 * (u.abs() - self.mean).abs().mean()
        elif not self.frozen:
            adapt(u, self.mean, self.deviation)
        return self.omega / (self.mean + 1.5 * self.deviation + 1e-4)

    def derivative(self, u: Tensor, sharpness: Tensor | None = None) -> Tensor:
        return self.shape.derivative(u, sharpness)

    def soft_step(self, u: Tensor) -> Tensor:
        return self.shape.soft_step(u)

    def select(self, rows: Tensor) -> None:
        """Keep the state ``[T, N, ...]`` of these samples only."""
        if self.mean is not None and self.deviation is not None and not self.pooled:
            self.mean, self.deviation = self.mean[:, rows], self.deviation[:, rows]


@dataclass
class ASSGOpened(SwapOpened):
    """One ``AdaptiveSharpness`` per layer."""

    layers: dict[str, AdaptiveSharpness] = field(default_factory=dict)

    def select(self, rows: Tensor) -> None:
        for layer in self.layers.values():
            layer.select(rows)

    def freeze(self, frozen: bool) -> None:
        for layer in self.layers.values():
            layer.frozen = frozen


@dataclass(frozen=True)
@checked_fields
class ASSG:
    """Adaptive sharpness surrogate gradient. arXiv 2512.22522 (CVPR 2026).

    ``strength``: published values are 0.425 to 0.435 for atan, about 0.8 for the other shapes; below 0.5 for
    atan. ``shape``: the surrogate that is stretched. ``start_from_first``: the running mean starts at the
    first ``|u|`` instead of at 1 (ours: short attacks then need no forty steps until the means have settled).
    UserError on another strength.

    >>> found = sg.sapgd(net, x, y, sg.Linf(8 / 255), steps=3, gradient=sg.gradients.ASSG(0.43))
    >>> found.backwards > 0
    True
    """

    strength: float = 0.435
    shape: Stretched = field(default_factory=Atan)
    start_from_first: bool = False

    def __post_init__(self) -> None:
        top = 0.5 if isinstance(self.shape, Atan) else math.inf
        if not 0 < self.strength < top:
            raise UserError(
                f"ASSG: strength = {self.strength} must lie in (0, {top}) for {type(self.shape).__name__}"
            )

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        omega = (
            2 / math.pi * math.tan(math.pi * self.strength) if isinstance(self.shape, Atan) else self.strength
        )
        layers: dict[str, AdaptiveSharpness] = {}

        def adaptive(name: str) -> AdaptiveSharpness:
            return layers.setdefault(
                name, AdaptiveSharpness(self.shape, omega, not known(model), self.start_from_first)
            )

        yield ASSGOpened(model, choose=adaptive, layers=layers)
