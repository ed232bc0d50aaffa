"""A search of another kind than those of the suite: populations, then flips of single pixels.

It is kept out of every suite, to tell what they miss. ``tools/local_search.py`` runs it on what `standard`
leaves of a network. Deterministic networks under Linf only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeguard.losses import margin
from spikeguard.models import Model, logits_of
from spikeguard.threat import Linf

Score = Callable[[Tensor], Tensor]
KEPT, CHILDREN = 20, 40
"""Points of a population, and new ones in each generation."""
LARGEST, KICK = 5, 16
"""Side of a block that mutates, in pixels; pixels that are flipped at random where no flip helps."""


@dataclass
class Scored:
    """The margin of points ``[M, C, H, W]`` for one label; above 0 the image is broken. ``used``: passes."""

    model: Model
    label: int
    used: int = 0

    def __call__(self, points: Tensor) -> Tensor:
        self.used += len(points)
        with torch.no_grad():
            logits = logits_of(self.model, points)
        return margin(logits, torch.full((len(points),), self.label))


@dataclass(frozen=True)
class Box:
    """The points that a Linf budget allows around one image."""

    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, image: Tensor, threat: Linf) -> Box:
        eps = threat.per_sample(image[None])[0]
        return cls((image - eps).clamp(min=0.0), (image + eps).clamp(max=1.0))

    def flipped(self, points: Tensor) -> Tensor:
        """Every pixel at the border that is farther away."""
        return torch.where(points - self.low > self.high - points, self.low, self.high)

    def corner(self, point: Tensor) -> Tensor:
        """Every pixel at the border that is nearer."""
        return self.flipped(self.flipped(point))


def evolve(score: Scored, box: Box, first: Tensor, passes: int, draws: torch.Generator) -> Tensor:
    """The best point of a population that began with ``first`` ``[M, C, H, W]``, best points come first.

    A child takes each pixel, or a rectangle, from one of two parents; half of them get a block at one border.
    """
    points, values = first, score(first)
    while score.used < passes and float(values.max()) <= 0:
        children = torch.stack([_child(box, points, draws) for _ in range(CHILDREN)])
        points, values = torch.cat([points, children]), torch.cat([values, score(children)])
        order = values.argsort(descending=True, stable=True)[:KEPT]
        points, values = points[order], values[order]
    return points[values.argsort(descending=True, stable=True)]


def _child(box: Box, points: Tensor, draws: torch.Generator) -> Tensor:
    """One new point of two others, the earlier ones more often."""
    chosen = (torch.rand(2, generator=draws).square() * len(points)).long()
    one, other = points[chosen[0]], points[chosen[1]]
    height, width = one.shape[-2:]
    if torch.rand((), generator=draws) < 0.5:
        mask = torch.rand(height, width, generator=draws) < 0.5
    else:
        mask = _window(height, width, max(height, width), draws)
    child = torch.where(mask, one, other)
    if torch.rand((), generator=draws) < 0.5:
        return child
    border = box.high if torch.rand((), generator=draws) < 0.5 else box.low
    return torch.where(_window(height, width, LARGEST, draws), border, child)


def _window(height: int, width: int, largest: int, draws: torch.Generator) -> Tensor:
    """A rectangle of random sides at a random place, ``[H, W]`` bool."""
    strips = []
    for length in (height, width):
        side = int(torch.randint(1, min(largest, length) + 1, (), generator=draws))
        start = int(torch.randint(0, length - side + 1, (), generator=draws))
        place = torch.arange(length)
        strips.append((place >= start) & (place < start + side))
    return strips[0][:, None] & strips[1][None, :]


def descend(score: Scored, box: Box, first: Tensor, passes: int, draws: torch.Generator) -> Tensor:
    """The best point by flips of single pixels, from ``first`` ``[C, H, W]``.

    All of them are tried, and the best ones taken together, as many as raise the margin most. Where none
    does, some are flipped at random, from the best point.
    """
    best = current = first
    value = now = float(score(first[None]))
    while score.used < passes and value <= 0:
        values = score(_each_flipped(box, current))
        order = values.argsort(descending=True, stable=True)
        helping = max(int((values > now).sum()), 1)
        counts = [2**k for k in range(helping.bit_length())]
        together = torch.stack([_flipped_at(box, current, order[:count]) for count in counts])
        values = score(together)
        if float(values.max()) > now:
            current, now = together[int(values.argmax())], float(values.max())
        else:
            current = _flipped_at(box, best, torch.randperm(best.numel(), generator=draws)[:KICK])
            now = float(score(current[None]))
        if now > value:
            best, value = current, now
    return best


def _each_flipped(box: Box, point: Tensor) -> Tensor:
    """A copy of the point for each of its values, ``[C H W, C, H, W]``, with that one flipped."""
    n = point.numel()
    return torch.where(torch.eye(n, dtype=torch.bool).view(n, *point.shape), box.flipped(point), point)


def _flipped_at(box: Box, point: Tensor, places: Tensor) -> Tensor:
    mask = torch.zeros(point.numel(), dtype=torch.bool)
    mask[places] = True
    return torch.where(mask.view_as(point), box.flipped(point), point)


def population_search(
    model: Model, image: Tensor, label: int, threat: Linf, first: Sequence[Tensor], passes: int, seed: int
) -> tuple[Tensor, int]:
    """The best point around one image ``[C, H, W]``, and the passes it took.

    Half of the passes go into a population that begins with the points ``first``, half into flips.
    """
    draws, box = torch.Generator().manual_seed(seed), Box.around(image, threat)
    score = Scored(model, label)
    begun = torch.stack([*first, *map(box.corner, first)])
    points = evolve(score, box, begun, passes // 2, draws)
    return descend(score, box, points[0], passes, draws), score.used
