"""The demo's page: one self-contained HTML file from the demo's record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spikeguard.records.files import write_bytes
from spikeguard.report import plots
from spikeguard.report.reading import reading


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f}"


def with_interval(told: Mapping[str, Any]) -> str:
    """'43.1 (40.0 to 46.2)'."""
    low, high = told["interval"]
    return f"{percent(told['accuracy'])} ({percent(low)} to {percent(high)})"


def environment() -> Any:
    """The templates, with the filters that pages use."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("spikeguard.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent, "with_interval": with_interval}
    return made


def write_page(record: Mapping[str, Any], images: Mapping[str, Any], path: Path) -> None:
    """Render ``record`` (``study.demo``) and the pictured images to ``path``."""
    networks = record["networks"]
    page = (
        environment()
        .get_template("demo.html")
        .render(
            record=record,
            reading=reading(record),
            bars=plots.bars(networks, record["eps"][0]),
            histograms=plots.histograms(networks, record["edges"], record["delta"]),
            curves=plots.curves(networks),
            twins=plots.twins(images["clean"], images["found"], images["names"], 5.0)
            if len(images["names"])
            else "",
        )
    )
    write_bytes(path, page.encode())
