"""What a table leaves beside its record: CSV, LaTeX, Markdown and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spikeguard.records.files import write_bytes
from spikeguard.records.tables import TableRecord
from spikeguard.runtime.shown import printable
from spikeguard.runtime.tabular import Rows, csv_text, latex_text, markdown_text
from spikeguard.tables.picture import picture
from spikeguard.tables.text import notes, rows


def write_texts(path: Path, header: Sequence[str], table: Rows, notes: Sequence[str]) -> list[Path]:
    """Write a table as ``.csv``, ``.tex`` and ``.md`` with its notes; returns the files."""
    texts = {
        ".csv": csv_text(header, table),
        ".tex": latex_text(header, table) + "".join(f"% {note}\n" for note in notes),
        ".md": markdown_text(header, table) + "".join(f"\n{note}\n" for note in notes),
    }
    for suffix, text in texts.items():
        write_bytes(path.with_suffix(suffix), printable(text).encode())
    return [path.with_suffix(suffix) for suffix in texts]


def write_table(record: TableRecord, path: Path) -> list[Path]:
    """Write all files of a table beside ``path``, its record; returns them."""
    written = write_texts(path, *rows(record), notes(record))
    drawn = picture(record)
    if drawn:
        write_bytes(path.with_suffix(".svg"), drawn.encode())
        written.append(path.with_suffix(".svg"))
    return written
