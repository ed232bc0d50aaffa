"""The demo's page: one self-contained HTML file from the demo's record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spikeguard.records.files import write_bytes
from spikeguard.records.studies import DemoRecord
from spikeguard.report import plots
from spikeguard.report.reading import reading
from spikeguard.report.text import environment
from spikeguard.runtime.shown import printable


@dataclass(frozen=True)
class Pictures:
    """Images ``[N, C, H, W]`` before and after an attack, with the classes that the network sees in both."""

    clean: plots.Images
    found: plots.Images
    names: list[tuple[str, str]]


def write_page(record: DemoRecord, images: Pictures, path: Path) -> None:
    """Render the demo to ``path``."""
    networks = record.networks
    page = (
        environment()
        .get_template("demo.html")
        .render(
            record=record,
            reading=reading(record),
            bars=plots.bars(networks, record.eps[0]),
            histograms=plots.histograms(networks, record.edges, record.delta),
            curves=plots.curves(networks),
            pictures=plots.image_rows(images.clean, images.found, images.names, 5.0) if images.names else "",
        )
    )
    write_bytes(path, printable(page).encode())
