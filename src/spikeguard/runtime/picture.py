"""Pictures in this library's style: a figure to draw on, and its text as SVG or its bytes as PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from spikeguard.runtime.shown import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#22262b"
STYLE: Any = {
    "font.size": 9,
    "text.parse_math": False,  # names of users are no formulas
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa1a9",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text: it can be searched, read out and compared
    "svg.hashsalt": "spikeguard",  # ids follow from what they name, not from chance
}


def figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """A figure in this library's style, and its axes by row and column.

    It is not one of pyplot's, so that the user's own windows and settings stay what they are.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        picture = Figure(figsize=(width, height), layout="constrained")
        axes = picture.subplots(rows, columns, squeeze=False)
    return picture, axes.tolist()


def svg(picture: Figure) -> str:
    """The figure as SVG text, the same every time."""
    drawn = _drawn(picture, "svg").decode()
    return drawn[drawn.index("<svg") :]


def png(picture: Figure) -> bytes:
    """The figure as a PNG file."""
    return _drawn(picture, "png")


def _drawn(picture: Figure, kind: str) -> bytes:
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in picture.findobj(Text):
        text.set_parse_math(False)
        text.set_text(printable(text.get_text()))
    out = io.BytesIO()
    with rc_context(STYLE):  # what is read when the file is written, above all svg.fonttype
        picture.savefig(out, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()
