"""The table of a sweep, from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADER = ("row", "seeds", "clean", "own surrogate", "worst case", "masked", "training, s", "errors")


def table(record: Mapping[str, Any]) -> list[list[str]]:
    """A line for each row of the matrix: accuracies in %, means over the seeds that did not fail."""
    rows: dict[str, list[Mapping[str, Any]]] = {row: [] for row in record["recipes"]}
    for cell in record["cells"].values():
        rows.setdefault(cell["row"], []).append(cell)
    return [_line(row, cells) for row, cells in rows.items()]


def _line(row: str, cells: Sequence[Mapping[str, Any]]) -> list[str]:
    done = [c for c in cells if "failed" not in c]
    failures = [c["failed"] for c in cells if "failed" in c]
    if not done:
        return [row, "0", *[""] * 5, failures[0] if failures else "not run"]

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    clean, worst = (mean([c[part]["accuracy"] for c in done]) for part in ("clean", "worst_case"))
    own = mean([c["masking"]["PGD-20"] for c in done])
    errors = sorted({flag for c in done for flag, level in c["flags"] if level == "error"})
    accuracies = [f"{100 * v:.1f}" for v in (clean, own, worst, own - worst)]
    return [
        row,
        str(len(done)),
        *accuracies,
        f"{mean([c['seconds'] for c in done]):.0f}",
        ", ".join([*errors, *failures]),
    ]
