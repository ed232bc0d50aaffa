"""Text that a user named, made harmless for what shows it: a terminal, a line of an error, a spreadsheet.

Names of files, classes and networks come from users and from files of strangers. None of them may be run as
an escape code, as markup or as a formula.
"""

from __future__ import annotations

import re

_RUN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters: what a terminal obeys
    "\u2028\u2029\u202a-\u202e\u2066-\u2069"  # line separators, and what turns the direction of writing
    "\ud800-\udfff]"  # bytes that are no text, which no encoding writes
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    """The text without what a terminal obeys: such characters are shown as escapes. Lines and tabs stay.

    >>> from spikeguard.runtime.shown import printable
    >>> print(printable("a \\x1b[31m name"))
    a \\x1b[31m name
    """
    return _RUN.sub(lambda match: ascii(match.group())[1:-1], text)


def one_line(text: str) -> str:
    """The text as one line: breaks and tabs are shown as escapes, too."""
    return re.sub(r"[\n\t]", lambda match: repr(match.group())[1:-1], printable(text))


def cell(text: str) -> str:
    """The text for a cell of a table that a spreadsheet may open: no formula, no break.

    >>> from spikeguard.runtime.shown import cell
    >>> cell("=1+1"), cell("runs/tgo")
    ("'=1+1", 'runs/tgo')
    """
    return ("'" if text.startswith(_FORMULA) else "") + one_line(text)
