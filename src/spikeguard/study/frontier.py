"""The baseline as a curve: what AT and TRADES reach at each clean accuracy, and how far a method lies above it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

RESAMPLES = 10_000


def height(points: Sequence[tuple[float, float]], clean: float) -> float:
    """Robust accuracy of the frontier at a clean accuracy: the upper hull of points ``(clean, robust)``.

    Left of the hull its highest point counts (a better net in both respects is still better), right of it the point of best clean accuracy.
    """
    hull: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if hull and hull[-1][0] == x:
            hull.pop()
        while len(hull) >= 2 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) <= (y - hull[-2][1]) * (hull[-1][0] - hull[-2][0]):
            hull.pop()
        hull.append((x, y))
    best = max(hull, key=lambda p: p[1])
    falling = [p for p in hull if p[0] >= best[0]]
    if clean <= falling[0][0]:
        return falling[0][1]
    for (x0, y0), (x1, y1) in pairwise(falling):
        if clean <= x1:
            return y0 + (y1 - y0) * (clean - x0) / (x1 - x0)
    return falling[-1][1]


def gaps(cells: Mapping[str, Mapping[str, Any]], group: str, row: str) -> list[float]:
    """Per seed, how far a row lies above the frontier of the same seed, at its own clean accuracy (both on validation images)."""
    found = []
    for cell in cells.values():
        if (cell["group"], cell["row"]) == (group, row):
            points = [place(c) for c in cells.values() if c["group"] == "frontier" and c["seed"] == cell["seed"]]
            if points:
                clean, robust = place(cell)
                found.append(robust - height(points, clean))
    return found


def place(cell: Mapping[str, Any]) -> tuple[float, float]:
    """Clean and robust accuracy on the same images."""
    return float(cell["clean"]["accuracy"]), float(cell["worst_case"]["accuracy"])


def lower_bound(values: Sequence[float], level: float = 0.05) -> float | None:
    """Lower end of a one-sided bootstrap interval of the mean over seeds; None for fewer than three."""
    if len(values) < 3:
        return None
    drawn = random.Random(0)
    resampled = sorted(sum(drawn.choices(values, k=len(values))) / len(values) for _ in range(RESAMPLES))
    return resampled[int(level * RESAMPLES)]
