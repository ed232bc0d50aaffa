"""The study's picture: every defence's clean against its worst-case accuracy, over the frontier of AT and TRADES. From the record alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikeguard.report.plots import INK, figure, svg
from spikeguard.study.frontier import height, place
from spikeguard.study.matrix import Key, on_frontier

COLOURS = {"BPTT": "#9aa1a9", "AT": "#1f6f8b", "regimes": "#7a5ea8", "frontier": "#b4532a"}
NAMES = {"BPTT": "no adversaries", "AT": "AT with a defence", "regimes": "other regimes", "frontier": "AT and TRADES alone"}
NAMED = 6
Row = Mapping[str, Any]


def picture(record: Mapping[str, Any]) -> str:
    """Ranking on the left (means over the seeds), on the right the best row and the frontier on seeds that did not choose it, where they were run."""
    confirmed = [c for c in record["confirmed"].values() if "failed" not in c]
    drawn, axes = figure(9.6 if confirmed else 5.6, 4.4, 1, 2 if confirmed else 1)
    _ranking(axes[0][0], _means(record["cells"].values()))
    if confirmed:
        _fresh(axes[0][1], confirmed)
    for axis in axes[0]:
        axis.set_xlabel("clean accuracy, %")
        axis.set_ylabel(f"worst case at {255 * record['eps']:.0f}/255, %")
        axis.set_ylim(-2, None)
        axis.grid(color="#e9ecef", lw=0.6)
        axis.set_axisbelow(True)
    return svg(drawn)


def _means(cells: Any) -> dict[Key, tuple[float, float]]:
    """Clean and worst-case accuracy of every row on the same images, in %, means over its seeds."""
    rows: dict[Key, list[tuple[float, float]]] = {}
    for cell in cells:
        if "failed" not in cell:
            rows.setdefault((cell["group"], cell["row"]), []).append(place(cell))
    return {key: (100 * sum(c for c, _ in v) / len(v), 100 * sum(w for _, w in v) / len(v)) for key, v in rows.items()}


def _kind(key: Key) -> str:
    return "frontier" if on_frontier({"group": key[0], "row": key[1]}) else key[0]


def _line(axis: Any, points: Sequence[tuple[float, float]], **style: Any) -> None:
    """The frontier through these points, from the most robust to that of best clean accuracy."""
    if points:
        left, right = max(points, key=lambda p: (p[1], p[0]))[0], max(c for c, _ in points)
        across = [left + (right - left) * k / 200 for k in range(201)]
        axis.plot(across, [height(points, c) for c in across], color=COLOURS["frontier"], **style)


def _ranking(axis: Any, rows: Mapping[Key, tuple[float, float]]) -> None:
    for kind in ("BPTT", "regimes", "AT", "frontier"):
        points = [p for key, p in rows.items() if _kind(key) == kind]
        if points:
            axis.scatter(*zip(*points, strict=True), s=22, color=COLOURS[kind], label=NAMES[kind], lw=0, zorder=3)
    _line(axis, [p for key, p in rows.items() if _kind(key) == "frontier"], lw=1.2)
    best = sorted((key for key in rows if _kind(key) != "frontier"), key=lambda key: -rows[key][1])[:NAMED]
    below = 1e9
    for key in best:  # highest first, one above the other
        clean, worst = rows[key]
        below = min(worst, below - 2.6)
        name = f"AT + {key[1]}" if key[0] == "AT" else key[1]
        style: Any = {"fontsize": 7.5, "color": INK, "va": "center", "arrowprops": {"arrowstyle": "-", "color": "#c3c9cf", "lw": 0.6}}
        axis.annotate(name, (clean, worst), (0.02, below), textcoords=("axes fraction", "data"), **style)
    left, right = axis.get_xlim()
    axis.set_xlim(left - 0.55 * (right - left), right)  # room for the names
    axis.set_title("ranking seeds: every defence", fontsize=9)
    axis.legend(frameon=False, fontsize=7.5, loc="lower left")


def _fresh(axis: Any, cells: Sequence[Row]) -> None:
    for seed in sorted({c["seed"] for c in cells}):
        points = [place(c) for c in cells if c["seed"] == seed and on_frontier(c)]
        _line(axis, [(100 * c, 100 * w) for c, w in points], lw=1.0, alpha=0.7)
    for kind, shown in (("frontier", [c for c in cells if on_frontier(c)]), ("AT", [c for c in cells if not on_frontier(c)])):
        if shown:
            points = [place(c) for c in shown]
            name = NAMES["frontier"] if kind == "frontier" else " ".join((shown[0]["group"], "+", shown[0]["row"]))
            axis.scatter([100 * c for c, _ in points], [100 * w for _, w in points], s=22, color=COLOURS[kind], label=name, lw=0, zorder=3)
    axis.set_title("fresh seeds: the best, and the frontier of each seed", fontsize=9)
    axis.legend(frameon=False, fontsize=7.5, loc="best")
