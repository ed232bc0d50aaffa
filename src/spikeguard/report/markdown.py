"""Pieces of Markdown pages: tables, and text in lines of at most 100 characters."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 100


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; a row that is too short is filled with empty cells.

    >>> from spikeguard.report.markdown import table
    >>> print("\\n".join(table(["network", "clean"], [["tgo", "81"], ["at"]])))
    | network | clean |
    |---|---|
    | tgo | 81 |
    | at |  |
    """
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [*row, *[""] * (len(header) - len(row))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def paragraph(text: str) -> list[str]:
    """A paragraph in lines of at most 100 characters."""
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def bullets(texts: Iterable[str]) -> list[str]:
    """A list, each item in lines of at most 100 characters."""
    wrapper = textwrap.TextWrapper(
        WIDTH,
        initial_indent="- ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line for text in texts for line in wrapper.wrap(text)]
