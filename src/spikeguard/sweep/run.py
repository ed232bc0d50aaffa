"""Run a matrix: train and audit every network, one record, which continues where it stopped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from spikeguard.auditing.suite import fingerprint
from spikeguard.data.images import Dataset, Images
from spikeguard.data.sources import load_data
from spikeguard.errors import UserError
from spikeguard.records.base import Record
from spikeguard.records.build import frozen
from spikeguard.records.studies import StudyRow
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.runtime.stop import Stop
from spikeguard.sweep.cells import (
    Cell,
    Context,
    Judgment,
    audit_cell,
    hash_of,
    machine_of,
    train_cell,
    with_audit,
)
from spikeguard.sweep.matrix import Matrix, SweepSettings
from spikeguard.sweep.workers import put_in_order, rows_of
from spikeguard.training.builder import training_parts

RECORD_NAME = "sweep.json"


@dataclass(frozen=True)
class SweepRecord(Record):
    """A sweep: its settings, the recipe of every row, the networks by name."""

    kind: ClassVar[str] = "sweep"
    name: str
    settings: SweepSettings
    recipes: dict[str, dict[str, object]]
    cells: dict[str, StudyRow]


@dataclass(frozen=True)
class TrainAndAudit:
    """Train a network and audit it once."""

    settings: SweepSettings
    verb: str = "train and audit"

    def __call__(self, context: Context, cell: Cell, title: str) -> StudyRow:
        """The network's row; ``failed`` with the reason where its training or its audit fails."""
        row = StudyRow(cell.group, cell.row, cell.seed, fingerprint=self.fingerprint(cell))
        try:
            training = train_cell(context, cell, title)
        except UserError as error:
            return replace(row, failed=str(error))
        images = audited_images(self.settings, cell, context.data)
        judgment = Judgment(self.settings.threat, self.settings.effort)
        return replace(
            with_audit(row, audit_cell(context, cell, images, judgment, title)),
            seconds=training.cost.seconds,
            validation_accuracy=training.validation_accuracy,
            machine=machine_of(context),
        )

    def fingerprint(self, cell: Cell) -> str:
        """A hash of what the row depends on: the recipe, how it is audited, the suite."""
        settings, effort = self.settings, self.settings.effort
        audited = [settings.norm, settings.eps, settings.images, settings.part]
        return hash_of([cell.recipe.values(), audited, effort, fingerprint(effort, settings.norm)])


def sweep(
    matrix: Matrix,
    out: Path,
    *,
    device: str | None = None,
    progress: Progress = no_progress,
    stop: Stop | None = None,
    jobs: int = 1,
    data: Dataset | None = None,
) -> SweepRecord:
    """Train and audit every network that ``out`` lacks; returns the record, written after each of them.

    A network whose recipe, audit or suite has changed is trained and audited again. ``jobs`` networks at a
    time, each in a process with its share of the threads. ``data`` None loads what the recipes name.
    UserError if the rows need different data; Interrupted after ``stop``, with everything kept.
    """
    cells = list(matrix.cells())
    if len(names := {cell.recipe.data for cell in cells}) > 1:
        raise UserError(
            f"sweep: the rows need different data ({', '.join(sorted(names))}): one file for each"
        )
    context = Context(out, data or load_data(cells[0].recipe.data), device, progress, stop)
    work, path = TrainAndAudit(matrix.settings), out / RECORD_NAME
    for cell in cells:
        audited_images(matrix.settings, cell, context.data)  # before hours of training
    before = SweepRecord.read(path).cells if path.exists() else {}
    valid = {c.name: before[c.name] for c in cells if _is_valid(before.get(c.name), work.fingerprint(c))}
    recipes = {row: frozen(chosen.values()) for row, chosen in matrix.rows.items()}
    record = SweepRecord(matrix.name, matrix.settings, recipes, valid)
    record.write(path)
    for cell, row in rows_of(context, work, [c for c in cells if c.name not in valid], jobs):
        record = replace(record, cells=put_in_order(record.cells, cell, row, cells))
        record.write(path)
    return record


def _is_valid(row: StudyRow | None, fingerprint: str) -> bool:
    return row is not None and row.fingerprint == fingerprint


def audited_images(settings: SweepSettings, cell: Cell, data: Dataset) -> Images:
    """The images of an audit; UserError if there are too few."""
    if settings.part == "test":
        return data.test.balanced(settings.images)
    if not cell.recipe.validation:
        raise UserError(f"sweep: {cell.row} has validation = 0: nothing to audit on; set part = 'test'")
    return training_parts(cell.recipe, data)[1].balanced(settings.images)
