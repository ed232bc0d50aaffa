"""One cell: train its network in pieces, audit it on validation images, keep the record."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch

from spikeguard.data.images import Dataset, Images
from spikeguard.errors import UserError
from spikeguard.records.build import frozen
from spikeguard.records.cells import CellRecord, Piece, Pieces
from spikeguard.records.files import write_bytes
from spikeguard.records.studies import StudyAudit
from spikeguard.records.training import TrainingRecord
from spikeguard.runtime.machine import machine
from spikeguard.runtime.stop import Stop
from spikeguard.sweep.cells import MORE, Context, Judgment, audit_cell, machine_of, summary
from spikeguard.threat import Linf
from spikeguard.training.builder import training_parts
from spikeguard.training.checkpoint import RECORD, STATE, WEIGHTS, recipe_of_state
from spikeguard.training.loop import train
from spikeguard.training.recipe import Recipe
from spikeguard.training.trainer import Report
from studies.cifar.cells import Planned
from studies.cifar.pace import Pace, now, say, span

PIECES = "pieces.json"


@dataclass(frozen=True)
class Place:
    """Where a cell's unfinished training lies, its finished one, its record; what ends the work."""

    state: Path
    results: Path
    stop: Stop

    def run_folder(self, planned: Planned) -> Path:
        """The folder of an unfinished training."""
        return self.state / "runs" / planned.cell.name

    def finished_folder(self, planned: Planned) -> Path:
        """Where its folder goes when its record is written."""
        return self.state / "finished" / planned.cell.name

    def record(self, planned: Planned) -> Path:
        """The file of its record."""
        return self.results / f"{planned.cell.name}.json"

    def is_done(self, planned: Planned) -> bool:
        """Whether it has a record; UserError if that is another recipe's."""
        path = self.record(planned)
        if not path.exists():
            return False
        if Recipe.of(CellRecord.read(path).recipe) != planned.cell.recipe:
            raise UserError(f"{path} is the record of another recipe: give the cell another name")
        return True


def work(planned: Planned, data: Dataset, place: Place) -> CellRecord:
    """Train, audit and record a cell; goes on where an earlier process stopped or was killed.

    A training or an audit that fails is recorded with its reason. Interrupted once ``place.stop`` is set,
    with everything kept. UserError if the folder holds the training of another recipe.
    """
    plan, cell = planned.plan, planned.cell
    values = frozen(cell.recipe.values())
    record = CellRecord(plan.name, plan.question, plan.minutes, values, eps=plan.eps)
    folder = place.run_folder(planned)
    _check(folder, cell.recipe)
    try:
        training = _train(planned, data, place)
        record = replace(record, training=training, audit=_audit(planned, data, place))
    except UserError as error:
        record = replace(record, failed=str(error))
    record = replace(record, pieces=pieces_in(folder).pieces)
    if plan.keep and (folder / WEIGHTS).exists():
        content = (folder / WEIGHTS).read_bytes()
        write_bytes(place.results / f"{cell.name}.safetensors", content)
        record = replace(record, weights=sha256(content).hexdigest())
    record.write(place.record(planned))
    if folder.exists():
        shutil.rmtree(place.finished_folder(planned), ignore_errors=True)
        place.finished_folder(planned).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder, place.finished_folder(planned))
    return record


def _check(folder: Path, recipe: Recipe) -> None:
    """UserError if a folder holds the training of another recipe."""
    if (folder / RECORD).exists():
        held = Recipe.of(TrainingRecord.read(folder / RECORD).recipe)
    elif (folder / STATE).exists():
        held = Recipe.of(recipe_of_state(folder))
    else:
        return
    if held != recipe:
        raise UserError(f"{folder} holds the training of another recipe: give the cell another name")


def pieces_in(folder: Path) -> Pieces:
    """The parts of the training in a folder so far."""
    return Pieces.read(folder / PIECES) if (folder / PIECES).exists() else Pieces()


def _train(planned: Planned, data: Dataset, place: Place) -> TrainingRecord:
    folder, plan, name = place.run_folder(planned), planned.plan, planned.cell.name
    if (folder / RECORD).exists():
        return TrainingRecord.read(folder / RECORD)
    folder.mkdir(parents=True, exist_ok=True)
    for broken in folder.glob(".*"):  # what a killed process was about to write
        broken.unlink()
    pace, earlier = Pace(place.state, place.stop), pieces_in(folder)
    pace.wait()
    machine_here = machine_of(Context(place.state, data, "cpu"))
    versions = machine().versions
    piece = Piece(now(), 0, 0, 0.0, 0.0, machine_here, versions["torch"], versions["spikeguard"])

    def progress(report: Report) -> None:
        nonlocal piece
        first = piece.first or report.step
        piece = replace(
            piece,
            first=first,
            last=report.step,
            seconds=round(pace.seconds(), 1),
            cpu_seconds=round(pace.cpu_seconds(), 1),
        )
        done, left = report.step - first + 1, report.steps - report.step
        each, free = pace.seconds() / done, pace.cpu_seconds() / torch.get_num_threads() / done
        pace.show(
            lambda: (
                f"{name}: step {report.step} of {report.steps}, loss {report.loss:.3f}, {each:.2f} s a step, "
                f"{span(each * left)} left, {span(free * left)} on free cores (all of it: "
                f"{span(free * report.steps)}, planned {span(60 * plan.minutes)})"
            )
        )
        if report.step % plan.save_every == 0 or report.step == report.steps or place.stop.is_set():
            Pieces((*earlier.pieces, piece)).write(folder / PIECES)
        pace.wait()

    return train(
        planned.cell.recipe,
        folder,
        "anywhere",
        "cpu",
        data=data,
        progress=progress,
        save_every=plan.save_every,
        stop=place.stop,
    ).record


def _audit(planned: Planned, data: Dataset, place: Place) -> StudyAudit | None:
    """The audit on the last validation images; defenses that choose do so by the first ones."""
    plan, cell, pace = planned.plan, planned.cell, Pace(place.state, place.stop)

    def progress(stage: str, done: int, total: int) -> None:
        pace.show(lambda: f"{stage}: {done} of {total}")
        pace.wait()

    held = training_parts(cell.recipe, data)[1]
    images = _last(held, plan.images)
    context = Context(place.state, data, "cpu", progress, place.stop)
    judgment = Judgment(Linf(plan.eps), plan.effort, MORE)
    out = place.run_folder(planned) / "audit"
    say(f"{cell.name}: audit ({plan.effort}) on {len(images)} validation images")
    try:
        record = audit_cell(context, cell, images, judgment, cell.name, out)
    except UserError:  # it began by another version
        shutil.rmtree(out, ignore_errors=True)
        record = audit_cell(context, cell, images, judgment, cell.name, out)
    return summary(record)


def _last(images: Images, count: int) -> Images:
    return images.select(torch.arange(max(0, len(images) - count), len(images)))
