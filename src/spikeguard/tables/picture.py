"""A table as a picture: a panel for each budget, a line for each network over the attacks."""

from __future__ import annotations

from spikeguard.auditing.export import budget_text
from spikeguard.records.schema import Budget
from spikeguard.records.tables import TableRecord
from spikeguard.runtime.picture import INK, figure, svg
from spikeguard.tables.columns import title

SHADES = ("#1f6f8b", "#b4532a", "#7d6aa8", "#4d7c3a", "#8a8a8a", "#b8860b", "#22262b", "#c06c97")


def picture(record: TableRecord) -> str:
    """SVG text; '' for a table without networks."""
    if not record.rows:
        return ""
    names = ["clean", *(title(c) for c in record.columns)]
    drawn, axes = figure(max(4.5, 1.0 + 0.75 * len(names)) * len(record.eps), 3.6, 1, len(record.eps))
    for axis, eps in zip(axes[0], record.eps, strict=True):
        for number, row in enumerate(record.rows):
            cells = [row.cell(c.name, eps) for c in record.columns]
            shares = [row.clean, *(None if c is None else c.accuracy for c in cells)]
            points = [(k, a) for k, a in enumerate(shares) if a is not None]
            axis.errorbar(
                [k + 0.06 * (number - (len(record.rows) - 1) / 2) for k, _ in points],
                [100 * a.value for _, a in points],
                [
                    [max(100 * (a.value - a.low), 0) for _, a in points],
                    [max(100 * (a.high - a.value), 0) for _, a in points],
                ],
                fmt="o-",
                color=SHADES[number % len(SHADES)],
                lw=1.2,
                ms=4,
                elinewidth=0.8,
                label=row.network,
            )
        axis.set_xticks(range(len(names)), names, rotation=25, ha="right", fontsize=8)
        axis.set_ylim(0, 102)
        axis.set_title(f"{record.norm} {budget_text(Budget(record.norm, eps))}", fontsize=9, color=INK)
        axis.grid(axis="y", color="#e3e6ea")
    axes[0][0].set_ylabel("accuracy, %")
    axes[0][-1].legend(frameon=False, fontsize=8)
    return svg(drawn)
