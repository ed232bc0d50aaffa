"""The queue of long trainings: it goes on where it was stopped or killed, wherever its state lies then."""

import math
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from narrow import changed, present, wrong

import spikeguard as sg
from spikeguard.data.images import Dataset, Images
from spikeguard.defenses import OverfittingStop
from spikeguard.errors import Interrupted, UserError
from spikeguard.records.cells import CellRecord, Pieces
from spikeguard.records.lock import locked
from spikeguard.records.schema import Accuracy, Masking, SuiteId
from spikeguard.records.studies import StudyAudit
from spikeguard.sweep.cells import Cell, Context, Judgment
from spikeguard.training.builder import training_parts
from spikeguard.training.checkpoint import STATE, WEIGHTS, load_tensors
from studies.cifar import command, pace, queue
from studies.cifar import work as work_module
from studies.cifar.cells import CELLS, Planned, read_cells
from studies.cifar.pace import PAUSE, Pace, span
from studies.cifar.work import PIECES, Place

TINY = """
[base]
recipe = "vanilla"
options = {width = 2}
timesteps = 2
train_images = 200
batch_size = 20
validation = 0.1
epochs = 2
images = 10
save_every = 3
defenses.nfgsm = {eps = "8/255"}
defenses.ema = {}

[[cells]]
name = "first"
question = "why?"
keep = true

[[cells]]
name = "second"
defenses.nfgsm = "off"
seed = 1
"""
ACCURACY = Accuracy.of(0.5, 10)
AUDIT = StudyAudit(
    ACCURACY, ACCURACY, Masking(0.5, 0, 0, 0, 0.5), (1.0,), (1.0,), (), SuiteId("", "", ""), 1.0
)


@pytest.fixture
def cells(tmp_path: Path) -> tuple[Planned, ...]:
    """Two small cells on the embedded images."""
    (tmp_path / "cells.toml").write_text(TINY)
    return read_cells(tmp_path / "cells.toml")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Folders for a queue whose audits cost nothing."""
    monkeypatch.setattr(work_module, "_audit", lambda *_: AUDIT)
    return Place(tmp_path / "state", tmp_path / "results", threading.Event())


class After:
    """A stop that is set once it was read so often."""

    def __init__(self, reads: int) -> None:
        self.left = reads

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_stopped_queue_goes_on_to_the_same_bits_in_another_folder(
    cells: tuple[Planned, ...], place: Place, tmp_path: Path
) -> None:
    whole = sg.train(cells[0].cell.recipe)
    with pytest.raises(Interrupted):
        queue.run(cells, replace(place, stop=After(12)), None)
    folder = place.run_folder(cells[0])
    assert (folder / STATE).exists()
    (folder / ".state.safetensors.half").write_bytes(b"what a killed process was about to write")
    moved = replace(place, state=tmp_path / "moved")
    shutil.copytree(place.state, moved.state)
    assert queue.run(cells, moved, None) == 2
    record = CellRecord.read(moved.record(cells[0]))
    assert present(record.training).parameters == sum(p.numel() for p in whole.net.parameters())
    kept = load_tensors(place.results / f"{cells[0].cell.name}.safetensors")[0]
    assert all(torch.equal(value, kept[name]) for name, value in whole.net.state_dict().items())
    first, second = record.pieces
    assert (first.first, second.last) == (1, 18)
    assert second.first == first.last + 1
    assert not list(moved.run_folder(cells[0]).parent.iterdir()), "finished trainings leave the folder"
    assert not list(moved.finished_folder(cells[0]).glob(".*"))
    assert queue.run(cells, moved, None) == 0


def test_a_killed_training_goes_on_from_its_checkpoint(
    cells: tuple[Planned, ...], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(self: Pace, every: float = 2.0) -> None:
        if (
            self.cpu_seconds()
            and (folder / PIECES).exists()
            and Pieces.read(folder / PIECES).pieces[-1].last == 6
        ):
            raise Killed

    folder = place.run_folder(cells[0])
    with monkeypatch.context() as patch:
        patch.setattr(Pace, "wait", kill)
        with pytest.raises(Killed):
            queue.run(cells, place, None)
    assert queue.run(cells, place, None, limit=1) == 1
    pieces = CellRecord.read(place.record(cells[0])).pieces
    assert [(p.first, p.last) for p in pieces] == [(1, 6), (4, 18)]  # killed before its second checkpoint
    whole = sg.train(cells[0].cell.recipe)
    kept = load_tensors(place.finished_folder(cells[0]) / WEIGHTS)[0]
    assert all(torch.equal(value, kept[name]) for name, value in whole.net.state_dict().items())


def test_a_changed_recipe_is_refused_and_a_failed_training_recorded(
    cells: tuple[Planned, ...], place: Place
) -> None:
    with pytest.raises(Interrupted):
        queue.run(cells, replace(place, stop=After(8)), None)

    def with_recipe(**fields: object) -> Planned:
        cell = cells[0].cell
        return Planned(cells[0].plan, replace(cell, recipe=changed(cell.recipe, **fields)))

    with pytest.raises(UserError, match="training of another recipe"):
        queue.run([with_recipe(lr=0.5)], place, None)
    shutil.rmtree(place.run_folder(cells[0]))
    assert queue.run([with_recipe(lr=1e30)], place, None) == 1
    assert "not finite" in present(CellRecord.read(place.record(cells[0])).failed)
    with pytest.raises(UserError, match="record of another recipe"):
        queue.run(cells, place, None)


def test_work_pauses_while_the_file_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queue.pause(tmp_path, True)
    kept = Pace(tmp_path, threading.Event())
    threading.Timer(0.2, queue.pause, (tmp_path, False)).start()
    kept.wait(every=0.01)
    assert not (tmp_path / PAUSE).exists()
    assert kept.paused > 0.15
    assert kept.seconds() < 0.15
    assert "paused until" in capsys.readouterr().out
    stopped = threading.Event()
    stopped.set()
    queue.pause(tmp_path, True)
    Pace(tmp_path, stopped).wait()


def test_one_process_at_a_time_has_the_state(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):  # noqa: SIM117
        with locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_a_signal_ends_the_work_in_order() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with queue.on_signals() as stop:
            os.kill(os.getpid(), number)
            time.sleep(0)
            assert stop.is_set()


def test_status_says_what_is_done_and_what_may_be_committed(
    cells: tuple[Planned, ...], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [line.split()[0] for line in queue.status(cells, place)] == ["waiting", "waiting"]
    queue.run(cells, place, None, limit=1)
    with pytest.raises(Interrupted):
        queue.run(cells, replace(place, stop=After(8)), None)
    done, training = queue.status(cells, place)
    assert done.startswith("done     first: clean 50.0, own PGD-20 50.0, worst case 50.0 %")
    assert training.startswith("training second-1: step 3, ")
    assert training.endswith("MB (commit)")
    monkeypatch.setattr(queue, "LARGEST_STATE", 10)
    assert list(queue.status(cells, place))[1].endswith("(too large to commit)")


def test_the_command_runs_a_queue_and_says_what_is_wrong_in_a_line(
    cells: tuple[Planned, ...],
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "nice", lambda _: 19)
    monkeypatch.setattr(command, "keep_freed_pages", lambda: True)
    monkeypatch.setattr(pace, "SHOWN_EVERY", 0.0)
    folders = ["--state", str(place.state), "--results", str(place.results)]
    given = [*folders, "--cells", str(tmp_path / "cells.toml")]
    assert command.main(["run", "--limit", "1", *given]) == 0
    shown = capsys.readouterr().out
    assert "first-0: why?" in shown
    assert "step 18 of 18" in shown
    assert "0 min left, 0 min on free cores (all of it: 0 min, planned 40 min)" in shown
    assert command.main(["status", *given]) == 0
    assert command.main(["pause", *given]) == 0
    assert (place.state / PAUSE).exists()
    assert command.main(["go", *given]) == 0
    (tmp_path / "cells.toml").write_text("[[cells]]\nname = 'x'\nwidht = 3\n")
    assert command.main(["run", *given]) == 2
    assert "unknown field 'widht'" in capsys.readouterr().err


def test_the_audit_is_on_validation_images_that_no_training_chose_by(
    cells: tuple[Planned, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audits = []

    def audit(context: Context, cell: Cell, images: Images, judgment: Judgment, *rest: object) -> None:
        audits.append((images, judgment))
        if len(audits) == 1:
            raise UserError("it began by another version")

    monkeypatch.setattr(work_module, "audit_cell", audit)
    monkeypatch.setattr(work_module, "summary", lambda _: AUDIT)
    place = Place(tmp_path / "state", tmp_path / "results", threading.Event())
    queue.run(cells[1:], place, None)
    assert CellRecord.read(place.record(cells[1])).audit == AUDIT
    (images, judgment), again = audits
    held = training_parts(cells[1].cell.recipe, sg.load_data("embedded"))[1]
    assert images.index.tolist() == held.index.tolist()[-10:] == again[0].index.tolist()
    assert len(held) == 20
    assert (judgment.threat, judgment.effort) == (sg.Linf(8 / 255), "quick")


def test_the_cells_of_the_study_are_sound() -> None:
    planned = read_cells(CELLS)
    assert len(planned) >= 10
    by_name = {p.plan.name: p for p in planned}
    assert all(p.cell.recipe.data in ("cifar10", "cifar100") for p in planned)
    assert all(p.plan.minutes <= 40 for p in planned if p.plan.name.startswith("pilot"))
    track_b = by_name["track b cifar10"]
    assert track_b.plan.keep
    assert track_b.plan.minutes <= 720
    assert track_b.cell.recipe.timesteps <= 4
    net = sg.build(
        track_b.cell.recipe.network, classes=10, in_shape=(3, 32, 32), **wrong(track_b.cell.recipe.options)
    )
    assert sum(p.numel() for p in net.parameters()) < 1_500_000


@pytest.mark.parametrize("planned", read_cells(CELLS), ids=lambda planned: planned.cell.name)
def test_every_cell_of_the_study_trains(planned: Planned, little_data: Dataset) -> None:
    """On few gray images, with a narrow network: whatever its defenses need of each other is there."""
    recipe = planned.cell.recipe
    options = {"widen": 1} if recipe.network == "wrn16" else {"width": 2}
    changes = {"options": options, "train_images": 50, "validation": 0.2, "batch_size": 20, "epochs": 2}
    defenses = tuple(
        replace(d, images=2, steps=1) if isinstance(d, OverfittingStop) else d for d in recipe.defenses
    )
    run = sg.train(changed(recipe, **changes, defenses=defenses), data=little_data)
    assert len(run.record.epochs) == 2
    last = run.record.epochs[-1]
    assert math.isfinite(last.loss)
    assert "validation_robust_accuracy" in last.measured


def test_durations_read_as_people_say_them() -> None:
    assert [span(s) for s in (100, 3600, 7500)] == ["2 min", "1 h 00 min", "2 h 05 min"]
