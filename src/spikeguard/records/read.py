"""Reading a record of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spikeguard.errors import UserError
from spikeguard.records.base import Record
from spikeguard.records.bench import BenchRecord
from spikeguard.records.build import shown
from spikeguard.records.diagnosis import DiagnosisRecord
from spikeguard.records.files import read_even_changed, read_json
from spikeguard.records.reproduction import AgreementRecord, ReproductionRecord
from spikeguard.records.schema import AttackRecord, AuditRecord
from spikeguard.records.studies import DemoRecord, StudyRecord
from spikeguard.records.tables import TableRecord
from spikeguard.records.training import HardeningRecord, TrainingRecord

KINDS: dict[str, type[Record]] = {
    kind.kind: kind
    for kind in (
        AuditRecord,
        AttackRecord,
        TrainingRecord,
        HardeningRecord,
        DemoRecord,
        StudyRecord,
        BenchRecord,
        DiagnosisRecord,
        TableRecord,
        ReproductionRecord,
        AgreementRecord,
    )
}


def read_record(path: Path) -> Record:
    """The record in a file, by its kind; UserError if it is missing, damaged or of an unknown kind."""
    return _of(read_json(path), path)


def read_to_verify(path: Path) -> tuple[Record, bool]:
    """As ``read_record``, and whether the file is as it was written; one that is not is read, too."""
    values, intact = read_even_changed(path)
    return _of(values, path), intact


def _of(values: dict[str, Any], path: Path) -> Record:
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{path}: a record of unknown kind {shown(kind)} (known: {', '.join(KINDS)})")
    return KINDS[kind].from_json(values, str(path))
