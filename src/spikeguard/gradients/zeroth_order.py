"""Gradients from differences of the loss alone: for models that give none. Each costs ``2 samples`` forwards.

NES: Gaussian directions, ``mean of (f(x + s d) - f(x - s d)) d / 2s`` (Ilyas et al., ICML 2018). SPSA: with
signs (Uesato et al., ICML 2018).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spikeguard.arguments import checked_fields
from spikeguard.errors import UserError
from spikeguard.gradients.base import Gradient, Opened
from spikeguard.losses import Loss
from spikeguard.models import Model
from spikeguard.random import draws


@dataclass
class ZerothOrderOpened(Opened):
    """Counts its gradients, which are part of the key of its draws."""

    law: str = "nes"
    samples: int = 32
    size: float = 0.01
    seed: int = 0
    calls: int = 0

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> Gradient:
        total = torch.zeros_like(x)
        for draw in range(self.samples):
            d = self._direction(x, draw)
            up = loss(self.logits((x + self.size * d).clamp(0, 1)), y)
            down = loss(self.logits((x - self.size * d).clamp(0, 1)), y)
            total += (up - down).view(-1, *[1] * (x.dim() - 1)) * d
        self.calls += 1
        logits = self.logits(x)
        return total / (2 * self.size * self.samples), loss(logits, y), logits

    def _direction(self, x: Tensor, draw: int) -> Tensor:
        """One direction for all samples, ``[1, ...]``."""
        key = draws.key(self.seed, self.law, self.calls, draw)
        one = torch.zeros(1, dtype=torch.int64, device=x.device)
        d = 2 * draws.uniform(key, one, x[0].numel()).view(1, *x.shape[1:]).to(x) - 1
        return d.sign() if self.law == "spsa" else torch.special.erfinv(d) * 2**0.5


@dataclass(frozen=True)
@checked_fields
class ZerothOrder:
    """Gradients from differences of the loss at random points. Ilyas et al., ICML 2018; Uesato et al., ICML
    2018.

    ``law``: 'nes' (Gaussian directions) or 'spsa' (random signs); ``samples``: directions a gradient, the
    same for all images; ``size``: of the offset, in units of images in [0, 1]. UserError on values out of
    range.

    >>> nes = sg.gradients.ZerothOrder(samples=4)
    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=2, restarts=1, gradient=nes)
    >>> found.backwards
    0
    """

    law: Literal["nes", "spsa"] = "nes"
    samples: int = 32
    size: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.size > 0:
            raise UserError(
                f"ZerothOrder: samples = {self.samples} must be at least 1, size = {self.size} above 0"
            )

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        yield ZerothOrderOpened(model, law=self.law, samples=self.samples, size=self.size, seed=self.seed)
