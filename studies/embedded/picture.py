"""The study's picture.

Every defense's clean against its worst-case accuracy, over the frontier of AT and TRADES. From the record
alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

from spikeguard.report.plots import INK, figure, svg
from studies.embedded.frontier import accuracies, frontier_at, grouped, whole
from studies.embedded.matrix import on_frontier

COLORS = {"BPTT": "#9aa1a9", "AT": "#1f6f8b", "regimes": "#7a5ea8", "frontier": "#b4532a"}
NAMES = {
    "BPTT": "no adversaries",
    "AT": "AT with a defense",
    "regimes": "other regimes",
    "frontier": "AT and TRADES alone",
}
NAMED = 6
Row = Mapping[str, Any]
Point = tuple[float, float]


def picture(record: Mapping[str, Any]) -> str:
    """Ranking on the left (means over the seeds), on the right what was best and the frontier.

    On seeds that did not choose it.
    """
    confirmed = [c for c in record["confirmed"].values() if "failed" not in c]
    drawn, axes = figure(9.6 if confirmed else 5.6, 4.4, 1, 2 if confirmed else 1)
    _ranking(axes[0][0], whole(record["cells"]).values())
    if confirmed:
        _fresh(axes[0][1], confirmed)
    for axis in axes[0]:
        axis.set_xlabel("clean accuracy, %")
        axis.set_ylabel(f"worst case at {255 * record['eps']:.0f}/255, %")
        axis.set_ylim(-2, None)
        axis.grid(color="#e9ecef", lw=0.6)
        axis.set_axisbelow(True)
    return svg(drawn)


def _points(cells: Iterable[Row]) -> list[Point]:
    """Clean and worst-case accuracy on the same images, in %."""
    return [(100 * clean, 100 * worst) for clean, worst in map(accuracies, cells)]


def _mean(points: Sequence[Point]) -> Point:
    clean, worst = zip(*points, strict=True)
    return sum(clean) / len(points), sum(worst) / len(points)


def _kind(cell: Row) -> str:
    return "frontier" if on_frontier(cell) else cell["group"]


def _named(cell: Row) -> str:
    return f"AT + {cell['row']}" if cell["group"] == "AT" else str(cell["row"])


def _dots(axis: Any, points: Sequence[Point], kind: str, label: str, marker: str = "o") -> None:
    if points:
        axis.scatter(
            *zip(*points, strict=True), s=22, color=COLORS[kind], label=label, marker=marker, lw=0, zorder=3
        )


def _line(axis: Any, points: Sequence[Point], **style: Any) -> None:
    """The frontier through these points, from the most robust to that of best clean accuracy."""
    if points:
        left, right = max(points, key=lambda p: (p[1], p[0]))[0], max(c for c, _ in points)
        across = [left + (right - left) * k / 200 for k in range(201)]
        axis.plot(across, [frontier_at(points, c) for c in across], color=COLORS["frontier"], **style)


def _ranking(axis: Any, cells: Iterable[Row]) -> None:
    rows = [(row[0], _mean(_points(row))) for row in grouped(c for c in cells if "failed" not in c).values()]
    for kind in ("BPTT", "regimes", "AT", "frontier"):
        _dots(axis, [p for cell, p in rows if _kind(cell) == kind], kind, NAMES[kind])
    _line(axis, [p for cell, p in rows if on_frontier(cell)], lw=1.2)
    best = sorted(((cell, p) for cell, p in rows if not on_frontier(cell)), key=lambda row: -row[1][1])[
        :NAMED
    ]
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


def _fresh(axis: Any, cells: Sequence[Row]) -> None:
    rivals, asked = [c for c in cells if on_frontier(c)], grouped(c for c in cells if not on_frontier(c))
    for seed in sorted({c["seed"] for c in cells}):
        _line(axis, _points(c for c in rivals if c["seed"] == seed), lw=1.0, alpha=0.7)
    _dots(axis, _points(rivals), "frontier", NAMES["frontier"])
    for row, marker in zip(asked.values(), cycle("osDv^P"), strict=False):
        _dots(axis, _points(row), _kind(row[0]), _named(row[0]), marker)
    axis.set_title("fresh seeds: what was chosen, and the frontier of each seed", fontsize=9)
    axis.legend(frameon=False, fontsize=7.5, loc="best")
