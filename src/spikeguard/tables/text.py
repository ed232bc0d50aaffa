"""A table as header and rows, for CSV, LaTeX and Markdown. From its record alone."""

from __future__ import annotations

from collections.abc import Sequence

from spikeguard.auditing.export import budget_text
from spikeguard.records.schema import Accuracy, Budget
from spikeguard.records.tables import TableCell, TableColumn, TableRecord, TableRow
from spikeguard.report.text import percent
from spikeguard.runtime.shown import cell as shown
from spikeguard.tables.columns import title

NO_NUMBER = "-"
UNRELIABLE = "*"
"""Behind a worst case whose audit has an error flag."""


def text_of(cell: TableCell | None) -> str:
    """A cell's accuracy in %, '-' without one."""
    if cell is None or cell.accuracy is None:
        return NO_NUMBER
    return percent(cell.accuracy.value) + (UNRELIABLE if cell.errors else "")


def headings(columns: Sequence[TableColumn], norm: str, eps: Sequence[float]) -> list[str]:
    """A heading for each column at each budget; the budget is named where there are several."""
    sizes = [budget_text(Budget(norm, e)) for e in eps]
    return [f"{title(c)}" + (f" at {size}" if len(eps) > 1 else "") for size in sizes for c in columns]


def interval(accuracy: Accuracy) -> str:
    """The 95 % interval of an accuracy."""
    return f"{percent(accuracy.low)} to {percent(accuracy.high)}"


def rows(record: TableRecord) -> tuple[list[str], list[list[str]]]:
    """Header and rows: accuracies in %, a network a row."""
    header = ["network", "clean", *headings(record.columns, record.norm, record.eps)]
    return header, [_row(record, row) for row in record.rows]


def _row(record: TableRecord, row: TableRow) -> list[str]:
    cells = [row.cell(c.name, e) for e in record.eps for c in record.columns]
    return [shown(row.network), percent(row.clean.value), *map(text_of, cells)]


def notes(record: TableRecord) -> list[str]:
    """What a reader of the numbers has to know: images, intervals, failures, flags."""
    if not record.rows:
        return ["No network is finished."]
    images, widest = record.rows[0].clean.n, _widest(record)
    said = [
        f"{images} images; accuracies in %, upper bounds. The 95 % interval over the choice of images is at "
        f"most {100 * widest:.1f} points wide on either side."
    ]
    cells = [(row, cell) for row in record.rows for cell in row.cells]
    if failed := [f"{row.network}, {cell.column}: {cell.failed}" for row, cell in cells if cell.failed]:
        said.append(f"{NO_NUMBER} no number. {'; '.join(dict.fromkeys(failed))}.")
    if flagged := [f"{row.network}: {', '.join(cell.errors)}" for row, cell in cells if cell.errors]:
        said.append(
            f"{UNRELIABLE} the audit flags its own number as not reliable. "
            f"{'; '.join(dict.fromkeys(flagged))}."
        )
    if random := [row.network for row in record.rows if row.random_model]:
        said.append(f"Random when scored, by the mean share of fresh draws: {', '.join(random)}.")
    return said


def _widest(record: TableRecord) -> float:
    accuracies = [c.accuracy for row in record.rows for c in row.cells if c.accuracy is not None]
    return max(
        (max(a.high - a.value, a.value - a.low) for a in [*accuracies, *(r.clean for r in record.rows)]),
        default=0.0,
    )
