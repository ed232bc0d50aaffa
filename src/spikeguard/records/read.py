"""Reading a record of any kind."""

from __future__ import annotations

from pathlib import Path

from spikeguard.errors import UserError
from spikeguard.records.bench import BenchRecord
from spikeguard.records.files import read_json
from spikeguard.records.schema import AttackRecord, AuditRecord, Record, TrainingRecord
from spikeguard.records.studies import DemoRecord, StudyRecord

KINDS: dict[str, type[Record]] = {
    kind.kind: kind
    for kind in (AuditRecord, AttackRecord, TrainingRecord, DemoRecord, StudyRecord, BenchRecord)
}


def read_record(path: Path) -> Record:
    """The record in a file, by its kind; UserError if it is missing, damaged or of an unknown kind."""
    values = read_json(path)
    kind = values.get("kind")
    if kind not in KINDS:
        raise UserError(f"{path}: a record of unknown kind {kind!r} (known: {', '.join(KINDS)})")
    return KINDS[kind].from_json(values, str(path))
