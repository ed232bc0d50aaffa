"""Adaptive sharpness surrogate gradient: each neuron's surrogate is as wide as its own potentials ask for.

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

from spikeguard.errors import UserError
from spikeguard.gradients.base import Opened
from spikeguard.gradients.surrogate import Swapped, known
from spikeguard.kernels.running import adapt
from spikeguard.models import Model
from spikeguard.surrogates import Atan, Stretched, Surrogate


class AdaptiveSharpness(Surrogate):
    """A surrogate whose sharpness follows the running mean and deviation of ``|u|``; ``pooled``.

    Of its mean over all neurons and samples.
    """

    def __init__(
        self, shape: Stretched, omega: float, pooled: bool = False, start_from_first: bool = False
    ) -> None:
        self.shape, self.omega, self.pooled, self.start_from_first, self.frozen = (
            shape,
            omega,
            pooled,
            start_from_first,
            False,
        )
        self.mean: Tensor | None = None
        self.spread: Tensor | None = None

    @property
    def native(self) -> str:  # type: ignore[override]
        return self.shape.native

    def kernel(self) -> Surrogate:
        return self.shape.kernel()

    def observe(self, u: Tensor) -> Tensor:
        if self.mean is None or self.spread is None:
            like = u.abs().mean() if self.pooled else u
            self.mean, self.spread = (
                like.abs() if self.start_from_first else torch.ones_like(like),
                torch.zeros_like(like),
            )
        if not self.frozen and self.pooled:
            self.mean = 0.9 * self.mean + 0.1 * u.abs().mean()
            self.spread = 0.9 * self.spread + 0.1 * (u.abs() - self.mean).abs().mean()
        elif not self.frozen:
            adapt(u, self.mean, self.spread)
        return self.omega / (self.mean + 1.5 * self.spread + 1e-4)

    def derivative(self, u: Tensor, sharpness: Tensor | None = None) -> Tensor:
        return self.shape.derivative(u, sharpness)

    def soft_step(self, u: Tensor) -> Tensor:
        return self.shape.soft_step(u)


@dataclass
class _Adapting(Swapped):
    layers: dict[str, AdaptiveSharpness] = field(default_factory=dict)

    def select(self, rows: Tensor) -> None:
        for layer in self.layers.values():
            if layer.mean is not None and layer.spread is not None and not layer.pooled:
                layer.mean, layer.spread = layer.mean[:, rows], layer.spread[:, rows]

    def freeze(self, frozen: bool) -> None:
        for layer in self.layers.values():
            layer.frozen = frozen


@dataclass(frozen=True)
class ASSG:
    """Estimator with adaptive sharpness; published strengths: 0.425 to 0.435 for atan, about 0.8 for the
    other shapes.

    ``start_from_first``: M starts at the first ``|u|`` instead of at 1 (ours: short attacks need no forty
    steps until the means have settled).
    """

    strength: float = 0.435
    shape: Stretched = field(default_factory=Atan)
    start_from_first: bool = False

    def __post_init__(self) -> None:
        top = 0.5 if isinstance(self.shape, Atan) else math.inf
        if not 0 < self.strength < top:
            raise UserError(
                f"assg: strength = {self.strength} must lie in (0, {top}) for {type(self.shape).__name__}"
            )

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        omega = (
            2 / math.pi * math.tan(math.pi * self.strength) if isinstance(self.shape, Atan) else self.strength
        )
        layers: dict[str, AdaptiveSharpness] = {}

        def adaptive(name: str) -> AdaptiveSharpness:
            return layers.setdefault(
                name, AdaptiveSharpness(self.shape, omega, not known(model), self.start_from_first)
            )

        yield _Adapting(model, choose=adaptive, layers=layers)
