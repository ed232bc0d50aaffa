"""A table as CSV, LaTeX or Markdown text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]
_SPECIAL = str.maketrans(
    {c: "\\" + c for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def csv_text(header: Sequence[str], rows: Rows) -> str:
    """The table as CSV.

    >>> from spikeguard.runtime.tabular import csv_text
    >>> csv_text(["network", "clean"], [["tgo", "81.0"]])
    'network,clean\\ntgo,81.0\\n'
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def latex_text(header: Sequence[str], rows: Rows) -> str:
    """The table as a LaTeX tabular (booktabs)."""
    lines = [" & ".join(c.translate(_SPECIAL) for c in row) + r" \\" for row in (header, *rows)]
    body = [
        r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}",
        r"\toprule",
        lines[0],
        r"\midrule",
        *lines[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(body) + "\n"


def markdown_text(header: Sequence[str], rows: Rows) -> str:
    """The table as Markdown, numbers to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)
