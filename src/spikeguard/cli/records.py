"""Records named on the command line: files, or folders of audits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spikeguard.errors import UserError

if TYPE_CHECKING:
    from spikeguard.records.base import Record

RECORD = "audit.json"


def record_file(name: str) -> Path:
    """The file of a record: ``name`` itself, or the record in a folder; UserError if there is none."""
    path = Path(name) / RECORD if Path(name).is_dir() else Path(name)
    if path.exists() and not path.is_file():  # a pipe or a device would be read without an end
        raise UserError(f"cannot read {path}: not a regular file")
    return path


def load_records(names: Sequence[str]) -> list[Record]:
    """The records; UserError names the first that is missing, damaged or says two things of one image."""
    from spikeguard.auditing.consistency import check_outcomes
    from spikeguard.records.read import read_record

    records = [read_record(record_file(name)) for name in names]
    for name, record in zip(names, records, strict=True):
        check_outcomes(record, name)
    return records


def check_replaceable(path: Path, is_ours: Callable[[Mapping[str, object]], bool]) -> None:
    """UserError if ``path`` cannot be written, or holds what its verb does not write: it would be lost.

    ``is_ours`` says it of the JSON object that the file holds; an empty file may be replaced.
    """
    from spikeguard.records.files import check_writable, read_even_changed

    check_writable(path)
    if not path.exists() or not path.stat().st_size:
        return
    try:
        held: Mapping[str, object] = read_even_changed(path)[0]
    except UserError:
        held = {}
    if not is_ours(held):
        raise UserError(f"{path} holds something else, which would be lost: name another file with --out")
