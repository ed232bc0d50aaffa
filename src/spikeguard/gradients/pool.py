"""Surrogates that vary.

By the channel's own spread (PDSG), by lot at every step and layer, and the published ensemble of 19 backward
passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spikeguard.gradients.base import Estimator, Opened
from spikeguard.gradients.relaxed import ReLUTwin
from spikeguard.gradients.sequence import BPTR
from spikeguard.gradients.surrogate import Swapped, SwapSurrogate
from spikeguard.losses import Loss
from spikeguard.models import Model
from spikeguard.random import draws
from spikeguard.surrogates import (
    Atan,
    Exponential,
    Gaussian,
    Rectangle,
    Sigmoid,
    StraightThrough,
    Stretched,
    Surrogate,
    Triangle,
)


class Shifted(Stretched):
    """Normal density of mean ``1 / 2`` and deviation 1 in units of the sharpness.

    Which is the inverse spread of the potentials so far.
    """

    native = "a * (exp(-0.5f * (a * u - 0.5f) * (a * u - 0.5f)) * 0.398942280f)"

    def shape(self, z: Tensor) -> Tensor:
        return torch.exp(-0.5 * (z - 0.5) ** 2) * 0.39894228

    def primitive(self, z: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.erf((z - 0.5) / 2**0.5))

    def observe(self, u: Tensor) -> Tensor:
        """One over the deviation per channel of ``u[0..t]``, over time, batch and space; 1 where it is 0."""
        spatial = u.dim() > 3
        at = [d for d in range(1, u.dim()) if not (spatial and d == 2)]
        count = (
            u[0].numel()
            / (u.shape[2] if spatial else 1)
            * torch.arange(1, len(u) + 1, device=u.device, dtype=u.dtype)
        )
        count = count.view(-1, *[1] * (u.dim() - 1))
        mean = u.sum(at, keepdim=True).cumsum(0) / count
        spread = (u.square().sum(at, keepdim=True).cumsum(0) / count - mean.square()).clamp(min=0.0).sqrt()
        return torch.empty_like(u).copy_(1.0 / torch.where(spread > 0, spread, torch.ones_like(spread)))


@dataclass(frozen=True)
class PDSG:
    """Potential-dependent surrogate: a normal density right of the threshold by half the channel's own
    spread. Lun et al., CVPR 2025.

    The spread is taken over the batch: a result depends on the company of a sample (its witness does not).
    """

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        yield Swapped(model, choose=lambda name: Shifted())


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


@dataclass(frozen=True)
class RandomSurrogate:
    """A surrogate drawn by lot for every layer at every step."""

    seed: int = 0
    lot: tuple[Surrogate, ...] = SURROGATE_POOL

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        yield RandomOpened(model, seed=self.seed, lot=self.lot)


@dataclass
class RandomOpened(Swapped):
    seed: int = 0
    lot: tuple[Surrogate, ...] = field(default=SURROGATE_POOL)
    calls: int = 0
    frozen: bool = False

    def freeze(self, frozen: bool) -> None:
        self.frozen = frozen

    def __post_init__(self) -> None:
        self.choose = lambda name: self.lot[draws.key(self.seed, name, self.calls) % len(self.lot)]

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        self.calls += not self.frozen
        return super().__call__(x, y, loss)


ENSEMBLE: dict[str, Estimator] = {
    **{f"triangle {g}": SwapSurrogate(Triangle(g)) for g in (0.25, 0.5, 1.0, 2.0, 3.0)},
    **{f"exponential 0.3 {b}": SwapSurrogate(Exponential(b, 0.3)) for b in (0.5, 1.0, 2.0)},
    **{f"exponential {b}": SwapSurrogate(Exponential(b)) for b in (0.5, 1.0, 2.0)},
    **{f"rectangle {g}": SwapSurrogate(Rectangle(g)) for g in (0.25, 0.5, 1.0, 2.0, 4.0)},
    "straight-through": SwapSurrogate(StraightThrough()),
    "BPTR": BPTR(),
    "ReLU twin": ReLUTwin(),
}
"""The 19 backward passes of Ozdenizci and Legenstein, TMLR 2024."""
