"""l1-APGD's step: few pixels, as many as the best point so far has moved. Croce and Hein, "Mind the Box",
ICML 2021.

    x_{k+1} = P(x_k + eta s / |s|_1)
    s: the sign of the largest k entries of the gradient that the box does not block

k starts at a fifth of the pixels, eta at eps. Every 4 % of the steps k becomes two thirds of the pixels that
the best point has moved. If their number fell by more than 5 %, eta is eps again and the sample goes on from
its best point, else eta falls by 1.5, down to eps / 10. We leave out blocked entries (a pixel at 0 or 1 that
would leave [0, 1]), which the paper does not: on images with much black or white they take most of the step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spikeguard.attacks.batch import Batch, HighestPoint, PerSample
from spikeguard.attacks.loop import MakeRule, Rule
from spikeguard.threat import L1

FIRST, FEWER, SETTLED, SHRINK, FLOOR, EVERY = 0.2, 1.5, 0.95, 1.5, 10.0, 0.04
MOVED = 1e-5  # a pixel that moved and came back differs by a last bit


class SparseStep(PerSample):
    """The rule above."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.clean, self.every = batch.x, max(math.ceil(EVERY * steps), 1)
        self.full = batch.threat.per_sample(batch.x)
        self.eta = self.full
        self.moved = torch.full_like(self.full.flatten(), batch.x[0].numel())
        self.count = FIRST * self.moved
        self.best: HighestPoint | None = None

    def step(self, k: int, x: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        """The next point."""
        best = self.best = self.best or HighestPoint(x, gradient, loss)
        best.update(x, gradient, loss)
        if k and k % self.every == 0:
            x, gradient = self._adapt(best, x, gradient)
        blocked = ((x <= 0) & (gradient < 0)) | ((x >= 1) & (gradient > 0))
        free = gradient.masked_fill(blocked, 0.0).flatten(1)
        ranked = free.abs().sort(1, descending=True)[0]
        last = ranked.gather(1, self.count.round().long().clamp(min=1)[:, None] - 1)
        chosen = free.sign() * (free.abs() >= last)
        return x + self.eta * (chosen / chosen.abs().sum(1, keepdim=True).clamp(min=1)).view_as(x)

    def _adapt(self, best: HighestPoint, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        moved = ((best.x - self.clean).abs() > MOVED).flatten(1).sum(1).to(self.moved)
        settled = (moved >= SETTLED * self.moved).view_as(self.full)
        self.count, self.moved = moved / FEWER, moved
        self.eta = torch.where(settled, torch.maximum(self.eta / SHRINK, self.full / FLOOR), self.full)
        return torch.where(settled, x, best.x), torch.where(settled, gradient, best.gradient)


def unless_l1(usual: MakeRule) -> MakeRule:
    """``SparseStep`` under L1, the ``usual`` rule under other threats."""

    def make(batch: Batch, steps: int) -> Rule:
        return SparseStep(batch, steps) if isinstance(batch.threat, L1) else usual(batch, steps)

    return make
