"""Where the output of an elementwise function jumps, found by bisection, neuron by neuron.

For functions whose comparison nobody sees: other libraries compute it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 16
"""A tensor with more values than these is no spike."""
SAMPLE = 512
"""Values examined first, to pass over functions that give no spikes."""
REACH, HALVINGS = 1e3, 64


def few_values(out: Tensor) -> bool:
    """Does a tensor hold spikes: two values, or a few levels?"""
    if not out.is_floating_point() or not out.numel() or not out.dim():
        return False
    values = out.detach()
    if len(values.flatten()[:SAMPLE].unique()) > LEVELS:
        return False
    low, high = values.aminmax()
    return bool(((values == low) | (values == high)).all()) or len(values.unique()) <= LEVELS


@dataclass(frozen=True, eq=False)
class Jumps:
    """Levels ``[K]`` in rising order, and the thresholds ``[K - 1, ...]`` between them."""

    levels: Tensor
    thresholds: Tensor

    def explain(self, v: Tensor, out: Tensor) -> bool:
        """Do these jumps give ``out`` from ``v``? Values next to a threshold do not count."""
        if self.thresholds.shape[1:] != v.shape and self.thresholds[0].numel() > 1:
            return False
        steps = self.levels.diff().view(-1, *[1] * v.dim())
        expected = self.levels[0] + ((v > self.thresholds) * steps).sum(0)
        tie = ((v - self.thresholds).abs() <= 1e-6 * (1 + v.abs())).any(0)
        return bool((((expected - out.detach()).abs() <= 1e-5) | tie).all())

    def nearest(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The distance to the nearest threshold, and the height of the jump there."""
        u = v - self.thresholds
        near = u.abs().argmin(0, keepdim=True)
        return u.gather(0, near)[0], self.levels.diff()[near[0]]


def find_jumps(evaluate: Callable[[Tensor], Tensor], v: Tensor, out: Tensor) -> Jumps | None:
    """The jumps of an elementwise function; None if it is not one of rising steps."""
    reach = max(REACH, 2 * float(v.abs().max()))
    grid = torch.linspace(-1.0, 1.0, v.numel(), dtype=v.dtype, device=v.device).view_as(v)
    seen = [out.detach(), *(evaluate(grid * r) for r in (reach, 10.0, 2.0))]
    seen += [evaluate(torch.full_like(v, r)) for r in (-reach, reach)]
    if any(not isinstance(s, Tensor) or s.shape != out.shape for s in seen):
        return None
    levels = torch.cat([s.flatten() for s in seen]).unique()
    if not 2 <= len(levels) <= LEVELS or not bool((seen[-1] > seen[-2]).all()):
        return None
    thresholds = torch.stack([_bisected(evaluate, v, float(level), reach) for level in levels[1:]])
    found = Jumps(levels, thresholds)
    return found if found.explain(v, out) else None


def _bisected(evaluate: Callable[[Tensor], Tensor], v: Tensor, level: float, reach: float) -> Tensor:
    """The largest values at which the output is below a level, ``[...]`` like ``v``."""
    below, above = torch.full_like(v, -reach), torch.full_like(v, reach)
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        high = evaluate(middle) >= level
        above, below = torch.where(high, middle, above), torch.where(high, below, middle)
        if bool(((middle == above) & (middle == below)).all()):
            break
    # 0 rather than the smallest number below it
    return torch.where((below <= 0) & (above >= 0) & (above - below < 1e-30), torch.zeros_like(v), below)
