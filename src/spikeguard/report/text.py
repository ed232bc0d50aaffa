"""Numbers as text, for pages, tables and templates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spikeguard.records.schema import Accuracy
from spikeguard.stats import COVERS

if TYPE_CHECKING:
    from jinja2 import Environment


def percent(share: float) -> str:
    """A share as a percentage with one decimal.

    >>> from spikeguard.report.text import percent
    >>> percent(0.4312)
    '43.1'
    """
    return f"{100 * share:.1f}"


def with_interval(accuracy: Accuracy) -> str:
    """An accuracy with its interval, such as '43.1 (40.0 to 46.2)'."""
    return f"{percent(accuracy.value)} ({percent(accuracy.low)} to {percent(accuracy.high)})"


def environment() -> Environment:
    """The templates, with the filters that pages use, and ``covers``: what an interval covers."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("spikeguard.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["covers"] = COVERS
    made.filters |= {"percent": percent, "with_interval": with_interval}
    return made
