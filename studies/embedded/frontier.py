"""The baseline as a curve: what AT and TRADES reach at each clean accuracy, and how far rows lie above."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from spikeguard.records.studies import StudyAudit, StudyRow
from studies.embedded.matrix import TWIN, Key, on_frontier

RESAMPLES = 2000
NEARLY = 0.8
"""Share of the rows that a seed needs to count as run."""
Cells = Mapping[str, StudyRow]


def key_of(cell: StudyRow) -> Key:
    """Group and row of a network."""
    return cell.group, cell.row


def audit_of(cell: StudyRow) -> StudyAudit:
    """The audit of a network that did not fail."""
    assert cell.audit is not None, cell.failed
    return cell.audit


def frontier_at(points: Sequence[tuple[float, float]], clean: float) -> float:
    """Robust accuracy of the frontier at a clean accuracy: the upper hull of points ``(clean, robust)``.

    Left of the hull its highest point counts (a network that is better in both respects exists), right of it
    the point of best clean accuracy.
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


def accuracies(cell: StudyRow, images: Sequence[int] | None = None) -> tuple[float, float]:
    """Clean and robust accuracy on the same images: on all of them, or on these (with repetition)."""
    audit = audit_of(cell)
    if images is None:
        return audit.clean.value, audit.worst_case.value
    clean, robust = (
        sum(outcomes[i] for i in images) / len(images) for outcomes in (audit.right_clean, audit.right)
    )
    return float(clean), float(robust)


def frontier_of(cell: StudyRow, cells: Cells) -> list[StudyRow]:
    """The points of the frontier of a network's own seed.

    None of them if some have not run: a part of the frontier would favor the network.
    """
    frontier = [c for c in cells.values() if on_frontier(key_of(c))]
    own_seed = [c for c in frontier if c.seed == cell.seed]
    return (
        [c for c in own_seed if not c.failed] if grouped(own_seed).keys() == grouped(frontier).keys() else []
    )


def margin(cell: StudyRow, frontier: Iterable[StudyRow], images: Sequence[int] | None = None) -> float:
    """How far a network lies above these points, at its own clean accuracy."""
    clean, robust = accuracies(cell, images)
    return robust - frontier_at([accuracies(c, images) for c in frontier], clean)


def margin_over_frontier(cell: StudyRow, cells: Cells) -> float | None:
    """How far a network lies above the frontier of its own seed; None if not all of that has run."""
    frontier = frontier_of(cell, cells)
    return margin(cell, frontier) if frontier else None


def margins_over_frontier(row: Iterable[StudyRow], cells: Cells) -> list[float]:
    """The margins of those networks of a row whose seed has a frontier."""
    return [m for c in row if (m := margin_over_frontier(c, cells)) is not None]


def grouped(cells: Iterable[StudyRow]) -> dict[Key, list[StudyRow]]:
    """Networks by group and row."""
    rows: dict[Key, list[StudyRow]] = {}
    for cell in cells:
        rows.setdefault(key_of(cell), []).append(cell)
    return rows


def finished_seeds(cells: Cells) -> dict[str, StudyRow]:
    """The networks of the seeds that nearly every row has run (a new row may lack some).

    A seed that has only begun would favor the rows it began with.
    """
    count = Counter(c.seed for c in cells.values())
    return {name: c for name, c in cells.items() if count[c.seed] >= NEARLY * max(count.values())}


def complete_rows(cells: Cells) -> dict[Key, list[StudyRow]]:
    """The rows that have every finished seed, without a network that failed or has an error flag.

    The twins without spikes are yardsticks and do not count.
    """
    rows = {
        key: row
        for key, row in grouped(finished_seeds(cells).values()).items()
        if not key[1].startswith(TWIN)
    }
    most = max((len(row) for row in rows.values()), default=0)
    return {key: row for key, row in rows.items() if len(row) == most and all(map(is_sound, row))}


def is_sound(cell: StudyRow) -> bool:
    """Whether a network has an audit without a flag of level error."""
    return cell.audit is not None and all(level != "error" for _, level in cell.audit.flags)


def mean_worst_case(cells: Iterable[StudyRow]) -> float:
    """The mean worst-case accuracy of a row."""
    return _mean([audit_of(c).worst_case.value for c in cells])


def best(cells: Cells) -> Key | None:
    """The complete row with the highest mean margin; None without a frontier."""
    means: dict[Key, float] = {}
    for key, row in complete_rows(cells).items():
        values = margins_over_frontier(row, cells)
        if not on_frontier(key) and len(values) == len(row):
            means[key] = _mean(values)
    return max(means, key=lambda key: means[key]) if means else None


def by_worst_case(cells: Cells) -> list[Key]:
    """The complete rows that are not part of the frontier, the highest mean worst case first."""
    rows = {key: row for key, row in complete_rows(cells).items() if not on_frontier(key)}
    return sorted(rows, key=lambda key: -mean_worst_case(rows[key]))


def most_robust(cells: Cells) -> Key | None:
    """The first of them."""
    return next(iter(by_worst_case(cells)), None)


def lower_bound(row: Sequence[StudyRow], cells: Cells, level: float = 0.05) -> float | None:
    """Lower end of a one-sided bootstrap interval of the mean margin, over seeds and over images.

    None for fewer than three seeds.
    """
    if len(row) < 3:
        return None
    generator, means = random.Random(0), []
    count = len(audit_of(row[0]).right)
    known = [(c, frontier) for c in row if (frontier := frontier_of(c, cells))]
    for _ in range(RESAMPLES):
        images = generator.choices(range(count), k=count)
        by_seed = {c.seed: margin(c, frontier, images) for c, frontier in known}
        values = [by_seed[c.seed] for c in generator.choices(row, k=len(row)) if c.seed in by_seed]
        if values:
            means.append(_mean(values))
    return sorted(means)[int(level * len(means))] if means else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
