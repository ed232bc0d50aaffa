"""The table of a sweep, from its record."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from spikeguard.records.studies import StudyRow
from spikeguard.sweep.run import SweepRecord

HEADER = ("row", "seeds", "clean", "own surrogate", "worst case", "masked", "training, s", "errors")


def table(record: SweepRecord) -> list[list[str]]:
    """A line for each row of the matrix: accuracies in %, means over the seeds that did not fail."""
    rows: dict[str, list[StudyRow]] = {row: [] for row in record.recipes}
    for cell in record.cells.values():
        rows.setdefault(cell.row, []).append(cell)
    return [_line(row, cells) for row, cells in rows.items()]


def _line(row: str, cells: Sequence[StudyRow]) -> list[str]:
    audits = [c.audit for c in cells if c.audit is not None]
    failures = [c.failed for c in cells if c.failed]
    if not audits:
        return [row, "0", *[""] * 5, failures[0] if failures else "not run"]
    clean, own, worst = (
        fmean(values)
        for values in zip(
            *((a.clean.value, a.masking.pgd20, a.worst_case.value) for a in audits), strict=True
        )
    )
    errors = sorted({flag for a in audits for flag, level in a.flags if level == "error"})
    seconds = fmean(c.seconds or 0.0 for c in cells if c.audit is not None)
    accuracies = [f"{100 * v:.1f}" for v in (clean, own, worst, own - worst)]
    return [row, str(len(audits)), *accuracies, f"{seconds:.0f}", ", ".join([*errors, *failures])]
