"""The baseline as a curve.

What AT and TRADES reach at each clean accuracy, and how far a method lies above it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from studies.embedded.matrix import TWIN, Key, on_frontier

RESAMPLES = 2000
NEARLY = 0.8
Row = Mapping[str, Any]


def frontier_at(points: Sequence[tuple[float, float]], clean: float) -> float:
    """Robust accuracy of the frontier at a clean accuracy: the upper hull of points ``(clean, robust)``.

    Left of the hull its highest point counts (a better net in both respects is still better), right of it the
    point of best clean accuracy.
    """
    hull: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if hull and hull[-1][0] == x:
            hull.pop()
        while len(hull) >= 2 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) <= (y - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    top = max(hull, key=lambda p: p[1])
    falling = [p for p in hull if p[0] >= top[0]]
    if clean <= falling[0][0]:
        return falling[0][1]
    for (x0, y0), (x1, y1) in pairwise(falling):
        if clean <= x1:
            return y0 + (y1 - y0) * (clean - x0) / (x1 - x0)
    return falling[-1][1]


def accuracies(cell: Row, images: Sequence[int] | None = None) -> tuple[float, float]:
    """Clean and robust accuracy on the same images: all, or these (with repetition)."""
    if images is None:
        return float(cell["clean"]["accuracy"]), float(cell["worst_case"]["accuracy"])
    clean, robust = (sum(cell[k][i] for i in images) / len(images) for k in ("right_clean", "right"))
    return float(clean), float(robust)


def frontier_of(cell: Row, cells: Mapping[str, Row]) -> list[Row]:
    """The points of the frontier of a network's own seed.

    None where not all of them have been run, for a part would flatter.
    """
    frontier = [c for c in cells.values() if on_frontier(c)]
    here = [c for c in frontier if c["seed"] == cell["seed"]]
    return [c for c in here if "failed" not in c] if grouped(here).keys() == grouped(frontier).keys() else []


def above(cell: Row, frontier: Iterable[Row], images: Sequence[int] | None = None) -> float:
    """How far a network lies above these points, at its own clean accuracy."""
    clean, robust = accuracies(cell, images)
    return robust - frontier_at([accuracies(c, images) for c in frontier], clean)


def margin_over_frontier(cell: Row, cells: Mapping[str, Row]) -> float | None:
    """How far a network lies above the frontier of its own seed; None if not all of that has been run."""
    frontier = frontier_of(cell, cells)
    return above(cell, frontier) if frontier else None


def margins_over_frontier(row: Iterable[Row], cells: Mapping[str, Row]) -> list[float]:
    """The gaps of those networks of a row whose seed has a frontier."""
    return [g for c in row if (g := margin_over_frontier(c, cells)) is not None]


def grouped(cells: Iterable[Row]) -> dict[Key, list[Row]]:
    """Networks by group and row."""
    rows: dict[Key, list[Row]] = {}
    for cell in cells:
        rows.setdefault((cell["group"], cell["row"]), []).append(cell)
    return rows


def whole(cells: Mapping[str, Row]) -> dict[str, Row]:
    """The networks of the seeds that nearly every row has run (a new row may lack some).

    One that has only begun favors the rows it began with.
    """
    count = Counter(c["seed"] for c in cells.values())
    return {name: c for name, c in cells.items() if count[c["seed"]] >= NEARLY * max(count.values())}


def complete(cells: Mapping[str, Row]) -> dict[Key, list[Row]]:
    """The rows that have every whole seed, none of their networks failed or flagged with an error.

    No yardsticks, for those have no spikes.
    """
    rows = {key: row for key, row in grouped(whole(cells).values()).items() if not key[1].startswith(TWIN)}
    most = max((len(v) for v in rows.values()), default=0)
    sound = {
        key: all("failed" not in c and all(level != "error" for _, level in c["flags"]) for c in v)
        for key, v in rows.items()
    }
    return {key: v for key, v in rows.items() if len(v) == most and sound[key]}


def mean_of(cells: Sequence[Row], what: str) -> float:
    """The mean accuracy of a row."""
    return sum(float(c[what]["accuracy"]) for c in cells) / len(cells)


def best(cells: Mapping[str, Row]) -> list[str] | None:
    """Group and row with the highest mean gap, of the complete rows; None without a frontier."""
    found: dict[Key, float] = {}
    for key, row in complete(cells).items():
        values = margins_over_frontier(row, cells)
        if not on_frontier(row[0]) and len(values) == len(row):
            found[key] = sum(values) / len(values)
    return [*max(found.items(), key=lambda item: item[1])[0]] if found else None


def by_worst_case(cells: Mapping[str, Row]) -> list[Key]:
    """The complete rows that are no part of the frontier, the highest mean worst case first."""
    rows = {key: row for key, row in complete(cells).items() if not on_frontier(row[0])}
    return sorted(rows, key=lambda key: -mean_of(rows[key], "worst_case"))


def most_robust(cells: Mapping[str, Row]) -> list[str] | None:
    """Group and row of the first of them."""
    return next(([*key] for key in by_worst_case(cells)), None)


def lower_bound(row: Sequence[Row], cells: Mapping[str, Row], level: float = 0.05) -> float | None:
    """Lower end of a one-sided bootstrap interval of the mean gap, over seeds and over images.

    None for fewer than three seeds.
    """
    if len(row) < 3:
        return None
    drawn, means = random.Random(0), []
    count = len(row[0]["right"])
    known = [(c, frontier) for c in row if (frontier := frontier_of(c, cells))]
    for _ in range(RESAMPLES):
        images = drawn.choices(range(count), k=count)
        by_seed = {c["seed"]: above(c, frontier, images) for c, frontier in known}
        values = [by_seed[c["seed"]] for c in drawn.choices(row, k=len(row)) if c["seed"] in by_seed]
        if values:
            means.append(sum(values) / len(values))
    return sorted(means)[int(level * len(means))] if means else None
