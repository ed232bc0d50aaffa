"""The study's picture: clean and worst-case accuracy of every defense, and the frontier of AT and TRADES."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from spikeguard.records.studies import StudyRecord, StudyRow
from spikeguard.runtime.picture import INK, figure, svg
from studies.embedded.frontier import accuracies, finished_seeds, frontier_at, grouped, key_of
from studies.embedded.matrix import on_frontier, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {"BPTT": "#9aa1a9", "AT": "#1f6f8b", "regimes": "#7a5ea8", "frontier": "#b4532a"}
NAMES = {
    "BPTT": "no adversaries",
    "AT": "AT with a defense",
    "regimes": "other regimes",
    "frontier": "AT and TRADES alone",
}
NAMED = 6
Point = tuple[float, float]


def picture(record: StudyRecord) -> str:
    """An SVG: the ranking on the left (means over seeds), the best rows on fresh seeds on the right."""
    confirmed = [c for c in record.confirmed.values() if not c.failed]
    drawn, axes = figure(9.6 if confirmed else 5.6, 4.4, 1, 2 if confirmed else 1)
    _ranking(axes[0][0], finished_seeds(record.cells).values())
    if confirmed:
        _fresh(axes[0][1], confirmed)
    for axis in axes[0]:
        axis.set_xlabel("clean accuracy, %")
        axis.set_ylabel(f"worst case at {255 * record.eps:.0f}/255, %")
        axis.set_ylim(-2, None)
        axis.grid(color="#e9ecef", lw=0.6)
        axis.set_axisbelow(True)
    return svg(drawn)


def _points(cells: Iterable[StudyRow]) -> list[Point]:
    """Clean and worst-case accuracy on the same images, in %."""
    return [(100 * clean, 100 * worst) for clean, worst in map(accuracies, cells)]


def _mean(points: Sequence[Point]) -> Point:
    clean, worst = zip(*points, strict=True)
    return sum(clean) / len(points), sum(worst) / len(points)


def _kind(cell: StudyRow) -> str:
    return "frontier" if on_frontier(key_of(cell)) else cell.group


def _named(cell: StudyRow) -> str:
    return f"AT + {title_of(cell.row)}" if cell.group == "AT" else title_of(cell.row)


def _dots(axis: Axes, points: Sequence[Point], kind: str, label: str, marker: str = "o") -> None:
    if points:
        clean, worst = zip(*points, strict=True)
        axis.scatter(clean, worst, s=22, color=COLORS[kind], label=label, marker=marker, lw=0, zorder=3)


def _line(axis: Axes, points: Sequence[Point], **style: Any) -> None:
    """The frontier of these points, from the most robust to that of best clean accuracy."""
    if points:
        left, right = max(points, key=lambda p: (p[1], p[0]))[0], max(c for c, _ in points)
        across = [left + (right - left) * k / 200 for k in range(201)]
        axis.plot(across, [frontier_at(points, c) for c in across], color=COLORS["frontier"], **style)


def _ranking(axis: Axes, cells: Iterable[StudyRow]) -> None:
    rows = [(row[0], _mean(_points(row))) for row in grouped(c for c in cells if not c.failed).values()]
    for kind in ("BPTT", "regimes", "AT", "frontier"):
        _dots(axis, [p for cell, p in rows if _kind(cell) == kind], kind, NAMES[kind])
    _line(axis, [p for cell, p in rows if on_frontier(key_of(cell))], lw=1.2)
    best = sorted(
        ((cell, p) for cell, p in rows if not on_frontier(key_of(cell))), key=lambda row: -row[1][1]
    )[:NAMED]
    below = 1e9
    for cell, (clean, worst) in best:  # highest first, one above the other
        below = min(worst, below - 2.6)
        style: Any = {
            "fontsize": 7.5,
            "color": INK,
            "va": "center",
            "arrowprops": {"arrowstyle": "-", "color": "#c3c9cf", "lw": 0.6},
        }
        axis.annotate(
            _named(cell), (clean, worst), (0.02, below), textcoords=("axes fraction", "data"), **style
        )
    left, right = axis.get_xlim()
    axis.set_xlim(left - 0.55 * (right - left), right)  # room for the names
    axis.set_title("ranking seeds: every defense", fontsize=9)
    axis.legend(frameon=False, fontsize=7.5, loc="lower left")


def _fresh(axis: Axes, cells: Sequence[StudyRow]) -> None:
    rivals, chosen = (
        [c for c in cells if on_frontier(key_of(c))],
        grouped(c for c in cells if not on_frontier(key_of(c))),
    )
    for seed in sorted({c.seed for c in cells}):
        _line(axis, _points(c for c in rivals if c.seed == seed), lw=1.0, alpha=0.7)
    _dots(axis, _points(rivals), "frontier", NAMES["frontier"])
    for row, marker in zip(chosen.values(), cycle("osDv^P"), strict=False):
        _dots(axis, _points(row), _kind(row[0]), _named(row[0]), marker)
    axis.set_title("fresh seeds: the chosen rows, and the frontier of each seed", fontsize=9)
    axis.legend(frameon=False, fontsize=7.5, loc="best")
