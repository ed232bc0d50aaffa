"""Records named on the command line: files, or folders of audits."""

from __future__ import annotations

from collections.abc import Sequence
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
