"""l1-APGD's step: few pixels, as many as the best point so far has moved. Croce and Hein, "Mind the Box",
ICML 2021.

    x_{k+1} = P(x_k + eta s / |s|_1)
    s: the sign of the largest k entries of the gradient that the box does not block

k starts at a fifth of the pixels, eta at eps. Every 4 % of the steps k becomes two thirds of the pixels that
the best point has moved. If these got fewer by more than 5 %, eta is eps again and the sample goes on from
its best point, else eta falls by 1.5, down to eps / 10. Blocked entries (a pixel at 0 or 1 that would leave
[0, 1]) are ours to leave out: on images with much black or white most of the step would be lost to them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spikeguard.attacks._loop import Make, remember
from spikeguard.threat import L1, Threat

FIRST, FEWER, SETTLED, SHRINK, FLOOR, EVERY = 0.2, 1.5, 0.95, 1.5, 10.0, 0.04
MOVED = 1e-5  # a pixel that went forth and back is off by a last bit


class SparseStep:
    """The rule above, a state per sample."""

    def __init__(self, clean: Tensor, threat: Threat, steps: int) -> None:
        self.clean, self.every = clean, max(math.ceil(EVERY * steps), 1)
        self.full = threat.per_sample(clean)
        self.eta = self.full
        pixels = torch.full_like(self.full.flatten(), clean[0].numel())
        self.held = {"count": FIRST * pixels, "moved": pixels}

    def step(self, k: int, x: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        h = self.held
        if k == 0:
            h |= {"best": x, "gradient": gradient, "top": loss}
        remember(h, x, gradient, loss)
        if k and k % self.every == 0:
            x, gradient = self._check(x, gradient)
        blocked = ((x <= 0) & (gradient < 0)) | ((x >= 1) & (gradient > 0))
        free = gradient.masked_fill(blocked, 0.0).flatten(1)
        last = (
            free.abs()
            .sort(1, descending=True)[0]
            .gather(1, h["count"].round().long().clamp(min=1)[:, None] - 1)
        )
        chosen = free.sign() * (free.abs() >= last)
        return x + self.eta * (chosen / chosen.abs().sum(1, keepdim=True).clamp(min=1)).view_as(x)

    def _check(self, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        h = self.held
        moved = ((h["best"] - self.clean).abs() > MOVED).flatten(1).sum(1).to(h["moved"])
        settled = (moved >= SETTLED * h["moved"]).view_as(self.full)
        h["count"], h["moved"] = moved / FEWER, moved
        self.eta = torch.where(settled, torch.maximum(self.eta / SHRINK, self.full / FLOOR), self.full)
        return torch.where(settled, x, h["best"]), torch.where(settled, gradient, h["gradient"])

    def select(self, rows: Tensor) -> None:
        self.clean, self.full, self.eta = self.clean[rows], self.full[rows], self.eta[rows]
        self.held = {name: value[rows] for name, value in self.held.items()}


def unless_l1(usual: Make) -> Make:
    """``SparseStep`` under L1, under other threats the ``usual`` rule."""
    return lambda clean, threat, steps: (SparseStep if isinstance(threat, L1) else usual)(
        clean, threat, steps
    )
