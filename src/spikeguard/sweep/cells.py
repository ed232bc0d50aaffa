"""One network of a sweep: train it, audit it, keep what a record says about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch

from spikeguard.attacks.adaptive import SHARPEST, THRESHOLD_FIRST, AdaptiveAttack
from spikeguard.auditing.audit import audit
from spikeguard.auditing.choice import member_of
from spikeguard.auditing.member import Member
from spikeguard.auditing.suite import Effort
from spikeguard.data.images import Dataset, Images
from spikeguard.errors import Interrupted, UserError
from spikeguard.records.schema import AuditRecord, Level
from spikeguard.records.studies import StudyAudit, StudyMachine, StudyRow
from spikeguard.records.training import TrainingRecord
from spikeguard.runtime.machine import machine
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.runtime.stop import Stop
from spikeguard.threat import Threat
from spikeguard.training.builder import pick_device
from spikeguard.training.checkpoint import RECORD
from spikeguard.training.load import load_classifier
from spikeguard.training.loop import train
from spikeguard.training.recipe import Recipe
from spikeguard.training.trainer import Report

MORE = (member_of(SHARPEST), member_of(THRESHOLD_FIRST))
"""Every network of the trainings on CIFAR meets these beside the suite: all stand under the same attacks."""
CONTINUE = "finished work is kept: run the same command again"


@dataclass(frozen=True)
class Cell:
    """One network of a sweep: its row (inside a group, which may be empty), its seed, its recipe."""

    group: str
    row: str
    seed: int
    recipe: Recipe

    @property
    def key(self) -> tuple[str, str]:
        """Group and row."""
        return self.group, self.row

    @property
    def name(self) -> str:
        """The name of its folder and of its place in the record."""
        text = f"{self.group} {self.row} {self.seed}".strip()
        return "".join(c if c.isalnum() else "-" for c in text.lower())


@dataclass(frozen=True)
class Context:
    """Where the networks of a sweep are kept, what they train on, who shows progress, what ends the work."""

    out: Path
    data: Dataset
    device: str | None = None
    progress: Progress = no_progress
    stop: Stop | None = None

    @property
    def stopped(self) -> bool:
        """Whether the work is to end."""
        return self.stop is not None and self.stop.is_set()

    def run_folder(self, cell: Cell) -> Path:
        """The folder of a network's training."""
        return self.out / "runs" / cell.name


@dataclass(frozen=True)
class Judgment:
    """How a network is audited: the threat, the effort, the members beside those of the suite.

    ``adaptive``: what is adaptive to a recipe's defenses; None: what the defenses say.
    """

    threat: Threat
    effort: Effort
    extra: tuple[Member, ...] = ()
    adaptive: Callable[[Recipe], tuple[AdaptiveAttack, ...]] | None = None


def train_cell(context: Context, cell: Cell, title: str) -> TrainingRecord:
    """The training record of a network, which is trained now if ``context.out`` lacks it.

    A run of another recipe is replaced. A run that cannot resume here (other threads, another machine) starts
    again. Interrupted after ``context.stop``, with everything kept.
    """
    folder = context.run_folder(cell)
    if (folder / RECORD).exists() and _recorded_recipe(folder) != cell.recipe:
        shutil.rmtree(folder)
    _check_stop(context)
    if folder.exists() and not (folder / RECORD).exists():
        try:
            _train(context, cell, title, resume=True)
        except UserError:  # it began with other threads or on another machine: the bits would differ
            shutil.rmtree(folder)
    if not folder.exists():
        try:
            _train(context, cell, title, resume=False)
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    _check_stop(context)
    return TrainingRecord.read(folder / RECORD)


def _recorded_recipe(folder: Path) -> Recipe | None:
    try:
        return Recipe.of(TrainingRecord.read(folder / RECORD).recipe)
    except UserError:
        return None


def _train(context: Context, cell: Cell, title: str, resume: bool) -> None:
    def progress(report: Report) -> None:
        context.progress(f"{title}: training", report.step, report.steps)

    folder, device = context.run_folder(cell), context.device
    try:
        train(cell.recipe, folder, resume, device, data=context.data, progress=progress, stop=context.stop)
    except Interrupted as error:
        raise Interrupted(f"stopped inside the training of {cell.recipe.name}; {CONTINUE}") from error


def _check_stop(context: Context) -> None:
    if context.stopped:
        raise Interrupted(f"stopped; {CONTINUE}")


def audit_cell(
    context: Context, cell: Cell, images: Images, judgment: Judgment, title: str, out: Path | None = None
) -> AuditRecord:
    """An audit of a trained network; with the folder ``out`` an interrupted one continues."""
    device = pick_device(context.device)
    net, images = load_classifier(context.run_folder(cell), str(device)), images.to(device)
    if judgment.adaptive is not None:
        net.adaptive = judgment.adaptive(cell.recipe)

    def progress(stage: str, done: int, total: int) -> None:
        context.progress(f"{title}: {stage}", done, total)

    try:
        result = audit(
            net,
            images.pixels(),
            images.y,
            judgment.threat,
            effort=judgment.effort,
            out=out,
            progress=progress,
            stop=context.stop,
            index=images.index,
            extra=judgment.extra,
        )
    except Interrupted as error:
        lost = "" if out else ", which starts again"
        raise Interrupted(f"stopped inside an audit{lost}; {CONTINUE}") from error
    return result.record


def machine_of(context: Context) -> StudyMachine:
    """The device, or the instruction sets and the number of threads.

    They decide the last bits of a sum, and so which network a training ends with.
    """
    if pick_device(context.device).type == "cuda":
        return StudyMachine(device=torch.cuda.get_device_name(0))
    return StudyMachine(instructions=machine().instructions, threads=torch.get_num_threads())


def with_audit(row: StudyRow, record: AuditRecord) -> StudyRow:
    """A row with what a sweep keeps of its audit; ``failed`` where that has no worst case to split."""
    if record.masking is None:
        return replace(row, failed="PGD-20 could not run", flags=_flags(record))
    return replace(row, audit=summary(record))


def summary(record: AuditRecord) -> StudyAudit | None:
    """What a sweep keeps of an audit, with the outcome of every image; None without PGD-20."""
    if record.masking is None:
        return None
    return StudyAudit(
        clean=record.clean,
        worst_case=record.worst_case,
        masking=record.masking,
        right=record.right,
        right_clean=record.right_clean,
        flags=_flags(record),
        suite=record.suite,
        seconds=record.cost.seconds,
    )


def _flags(record: AuditRecord) -> tuple[tuple[str, Level], ...]:
    return tuple((flag.id, flag.level) for flag in record.flags)


def hash_of(parts: Sequence[object]) -> str:
    """The first 16 digits of a hash of plain values."""
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
