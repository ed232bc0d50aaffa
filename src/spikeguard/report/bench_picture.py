"""The picture of a bench: the time of each contender over that of our best, one panel for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spikeguard.records.bench import BenchRecord
from spikeguard.report.plots import COLORS
from spikeguard.runtime.picture import INK, figure, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, FLOOR, OTHERS = COLORS["tgo"], "#c9ced4", COLORS["vanilla"]


def picture(record: BenchRecord) -> str:
    """SVG text of a bench's record: timed tasks, peak memory, growth curves."""
    panels = [(name, timing.over_best, timing.median, "s") for name, timing in record.timed.items()]
    for subject, sizes in record.memory.bytes.items() if record.memory else ():
        known = {name: size / 2**30 for name, size in sizes.items() if size}
        if known:
            best = min(size for name, size in known.items() if name.startswith("TGO"))
            over = {name: size / best for name, size in known.items()}
            panels.append((f"peak memory of a training step, {subject}", over, known, "GiB"))
    curves = list(record.growth.curves.items()) if record.growth else []
    rows = -(-len(panels) // 2) + (1 if curves else 0)
    drawn, axes = figure(11, 2.9 * rows, rows, 4 if curves else 2)
    if curves:
        for row in range(rows - 1):  # panels take two columns each, curves one
            for column in (1, 3):
                axes[row][column].remove()
            for column in (0, 2):
                grid = axes[row][column].get_gridspec()
                assert grid is not None
                axes[row][column].set_subplotspec(grid[row, column : column + 2])
    slots = [
        axes[row][column] for row in range(rows - bool(curves)) for column in ((0, 2) if curves else (0, 1))
    ]
    for axis, (title, ratio, value, unit) in zip(slots, panels, strict=False):
        _bars(axis, title, ratio, value, unit)
    for axis in slots[len(panels) :]:
        axis.remove()
    for axis, (name, curve) in zip(axes[-1] if curves else (), curves, strict=False):
        _curve(axis, name, curve.values, curve.seconds)
    return svg(drawn)


def _curve(axis: Axes, name: str, values: Sequence[int], seconds: Sequence[float]) -> None:
    power, note = (2, "dotted: as the area") if name == "side" else (1, "dotted: linear")
    axis.loglog(values, [seconds[-1] * (v / values[-1]) ** power for v in values], ":", color=INK, lw=1)
    axis.loglog(values, seconds, "o-", color=OURS, ms=4)
    axis.set_xticks(values, [str(v) for v in values], fontsize=7)
    axis.tick_params(labelsize=7)
    axis.minorticks_off()
    axis.set_title(f"seconds against {name}\n{note}", fontsize=8, loc="left")


def _bars(axis: Axes, title: str, ratio: Mapping[str, float], value: Mapping[str, float], unit: str) -> None:
    names = sorted(ratio, key=lambda n: ratio[n], reverse=True)
    for place, name in enumerate(names):
        ours = name.startswith(("TGO", "vanilla", "plain loop", "all steps", "dropping"))
        axis.barh(
            place,
            ratio[name],
            0.7,
            color=OURS if ours else FLOOR if name.startswith("floor") else OTHERS,
            lw=0,
        )
        text = f" {ratio[name]:.2f}  ({value[name]:.2f} {unit})"
        label = axis.text(ratio[name], place, text, va="center", fontsize=7)
        label.set_bbox({"facecolor": "white", "lw": 0, "pad": 0.5})  # above the line at 1
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.axvline(1, color=INK, lw=0.8, zorder=0.5)
    axis.set_xlim(0, 1.3 * max(ratio.values()))
    axis.set_title(f"{title}: times our best", fontsize=9, loc="left")
