"""The study: its matrix, its record that continues where it stopped, its page."""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
import torch
from conftest import little_recipe, shorten_suite, shortened
from narrow import present
from rows import made_up_row, text_of

import spikeguard as sg
from spikeguard.auditing import suite
from spikeguard.auditing.suite import Effort
from spikeguard.cli.main import main
from spikeguard.data.images import Dataset
from spikeguard.defenses import DEFENSES, Defense
from spikeguard.errors import Interrupted, UserError
from spikeguard.records.studies import StudyRecord, StudyRow
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.runtime.stop import Stop
from spikeguard.sweep import cells as cells_module
from spikeguard.sweep.cells import Cell, Context, audit_cell, train_cell
from spikeguard.sweep.workers import Work
from spikeguard.training.loop import train
from spikeguard.training.recipes import recipe
from studies.embedded import matrix, ranking, stages
from studies.embedded.frontier import audit_of
from studies.embedded.matrix import StudySize
from studies.embedded.page import page

SMALL = StudySize(seeds=1, epochs=1, ranked_on=20, scored_on=20)


def test_the_matrix_has_every_defense_with_and_without_at_and_every_regime_with_and_without_tgo() -> None:
    all_ = list(matrix.cells(StudySize(seeds=2)))
    assert len({c.name for c in all_}) == len(all_)
    by = {(c.group, c.row) for c in all_}
    for row in matrix.rows():
        assert {("BPTT", row), ("AT", row)} <= by
    assert set(matrix.AMONG_FRONTIER) <= by
    for row in matrix.regimes():
        assert {("regimes", row), ("regimes", f"{row}, TGO")} <= by
    used = {type(d) for c in all_ for d in c.recipe.defenses}
    assert used == set(DEFENSES.values())
    assert [c.seed for c in all_] == sorted(c.seed for c in all_)
    same = (
        "network",
        "options",
        "timesteps",
        "neuron",
        "epochs",
        "batch_size",
        "lr",
        "weight_decay",
        "augment",
        "train_images",
    )
    assert len({str([getattr(c.recipe, k) for k in same]) for c in all_}) == 1


def shorten_audits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits by few members, each in few steps."""
    shorten_suite(monkeypatch)
    rows = {"quick": suite.QUICK[:4], "standard": suite.STANDARD[:4], "full": suite.QUICK[:6]}
    for effort, members in rows.items():
        monkeypatch.setitem(suite.SUITES, effort, tuple(map(shortened, members)))
    monkeypatch.setattr(ranking, "MORE", tuple(map(shortened, matrix.MORE)))


class ShortRank(ranking.Rank):
    """Its audits are short in other processes too, which know nothing of what a test has replaced."""

    def __call__(self, context: Context, cell: Cell, title: str) -> StudyRow:
        if multiprocessing.parent_process() is None:
            return super().__call__(context, cell, title)
        with pytest.MonkeyPatch.context() as patch:
            shorten_audits(patch)
            return super().__call__(context, cell, title)


@pytest.fixture
def small_study(monkeypatch: pytest.MonkeyPatch, little_data: Dataset) -> None:
    """Three cells of seconds."""
    base = little_recipe(epochs=1, options={"width": 2}, validation=0.1)
    chosen: list[tuple[str, str, tuple[Defense, ...]]] = [
        ("frontier", "AT 8/255", (sg.AT(steps=1),)),
        ("AT", "TGO", (sg.AT(steps=1), sg.TGO())),
        ("AT", "none", (sg.AT(steps=1),)),
    ]

    def cells(settings: StudySize, seeds: Sequence[int] | None = None) -> Iterator[Cell]:
        for seed in range(settings.seeds) if seeds is None else seeds:
            for group, row, defenses in chosen:
                yield Cell(
                    group, row, seed, replace(base, name=f"{group} {row}", defenses=defenses, seed=seed)
                )

    monkeypatch.setattr(matrix, "cells", cells)
    monkeypatch.setattr(stages, "Rank", ShortRank)
    shorten_audits(monkeypatch)
    monkeypatch.setattr(ranking, "MORE_AT_LAST", suite.QUICK[2:3])
    whole = cells_module.summary  # without flags, which networks this small have now and then
    monkeypatch.setattr(cells_module, "summary", lambda record: (s := whole(record)) and replace(s, flags=()))


class RunStudy(Protocol):
    """Run the study in a folder, by default the test's own."""

    def __call__(
        self,
        size: StudySize = SMALL,
        progress: Progress = no_progress,
        stop: Stop | None = None,
        out: Path = ...,
        finish: bool = True,
        jobs: int = 1,
    ) -> StudyRecord: ...


@pytest.fixture
def run(little_data: Dataset, tmp_path: Path) -> RunStudy:
    """Run the study in a folder: ``run(size, progress, stop, out=...)``."""

    def go(
        size: StudySize = SMALL,
        progress: Progress = no_progress,
        stop: Stop | None = None,
        out: Path = tmp_path,
        finish: bool = True,
        jobs: int = 1,
    ) -> StudyRecord:
        return stages.run(size, Context(out, little_data, None, progress, stop), finish=finish, jobs=jobs)

    return go


@pytest.mark.slow
def test_a_study_continues_where_it_stopped_and_its_page_says_what_is_missing(
    small_study: None, run: RunStudy, tmp_path: Path
) -> None:
    stop = threading.Event()

    def progress(stage: str, done: int, total: int) -> None:
        if stage.startswith("2 of 3") and "control" in stage:
            stop.set()

    with pytest.raises(Interrupted):
        run(progress=progress, stop=stop)
    half = StudyRecord.read(tmp_path / stages.RECORD_NAME)
    assert 1 <= len(half.cells) < 3
    assert "not run" in page(half)
    ranked = run(finish=False)
    assert all(ranked.cells[k] == v for k, v in half.cells.items())
    assert len(ranked.cells) == 3
    assert not ranked.test
    shutil.rmtree(tmp_path / "runs")  # the record moves, the networks do not: finalists are trained again
    record = run()
    assert set(record.test) == set(record.finalists)
    ((name, full),) = record.full.items()
    assert audit_of(full).members == 8  # six, and what is adaptive to AT and TGO
    assert audit_of(full).worst_case.value <= audit_of(record.cells[name]).worst_case.value
    assert {c.seed for c in record.confirmed.values()} == {100, 101, 102, 103, 104}
    text = text_of(page(record))
    assert "3 of 9 networks (3 ways to train, 3 seeds) were run; the means are over seed 0." in text
    assert "(trained again)" in text
    assert "under `full` (8 attacks), on the images of the ranking" in text
    assert "lie above the AT/TRADES frontier" in text or "lies above the AT/TRADES frontier" in text
    again = run()
    assert again == StudyRecord.read(tmp_path / stages.RECORD_NAME)
    assert all(getattr(again, k) == getattr(record, k) for k in ("cells", "test", "best", "full"))
    with pytest.raises(UserError, match="holds a study with settings"):
        run(replace(SMALL, epochs=2))


@pytest.mark.slow
def test_a_network_with_another_recipe_is_trained_again_and_a_failure_is_reported(
    small_study: None, run: RunStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(finish=False)
    cells = matrix.cells

    def changed(size: StudySize, seeds: Sequence[int] | None = None) -> Iterator[Cell]:
        for cell in cells(size, seeds):
            lr = {"TGO": 0.05, "none": 1e6}.get(cell.row, cell.recipe.lr)
            yield replace(cell, recipe=replace(cell.recipe, lr=lr))

    monkeypatch.setattr(matrix, "cells", changed)
    second = run(finish=False)
    names = {c.row: name for name, c in first.cells.items()}
    assert second.cells[names["AT 8/255"]] == first.cells[names["AT 8/255"]]
    assert second.cells[names["TGO"]].fingerprint != first.cells[names["TGO"]].fingerprint
    assert "lower lr" in present(second.cells[names["none"]].failed)
    assert "failed" in page(second)


@pytest.mark.slow
def test_networks_ranked_side_by_side_are_those_ranked_in_turn_whatever_ends_a_process(
    small_study: None, run: RunStudy, tmp_path: Path
) -> None:
    policy, out = os.environ.get("OMP_WAIT_POLICY"), tmp_path / "beside"
    killed: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        if not killed and (workers := multiprocessing.active_children()):
            killed.append(present(workers[0].pid))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(UserError, match="was ended"):
        run(progress=kill, out=out, finish=False, jobs=2)
    stop = threading.Event()
    with pytest.raises(Interrupted):
        run(
            progress=lambda stage, done, total: stop.set() if done else None,
            stop=stop,
            out=out,
            finish=False,
            jobs=2,
        )
    assert 1 <= len(StudyRecord.read(out / stages.RECORD_NAME).cells) < 3
    beside = run(out=out, finish=False, jobs=2).cells
    names = [cell.name for cell in matrix.cells(SMALL)]
    assert list(beside) == names, "ties go by the order of the record"
    assert os.environ.get("OMP_WAIT_POLICY") == policy, "processes that start later are not affected"
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        in_turn = run(out=tmp_path / "turn", finish=False).cells
    finally:
        torch.set_num_threads(threads)
    assert beside.keys() == in_turn.keys()
    for name, row in in_turn.items():
        for what in ("fingerprint", "validation_accuracy", "machine"):
            assert getattr(beside[name], what) == getattr(row, what), (name, what)
        for what in ("right", "right_clean"):
            assert getattr(beside[name].audit, what) == getattr(row.audit, what), (name, what)


def test_a_training_that_began_with_other_threads_starts_again_instead_of_failing(
    small_study: None, tmp_path: Path, little_data: Dataset
) -> None:
    cell, stop, threads = next(matrix.cells(SMALL)), threading.Event(), torch.get_num_threads()
    stop.set()
    with pytest.raises(Interrupted):
        train(cell.recipe, tmp_path / "runs" / cell.name, data=little_data, stop=stop)
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(UserError, match="threads"):
            train(cell.recipe, tmp_path / "runs" / cell.name, True, data=little_data)
        with pytest.raises(Interrupted, match="same command"):
            train_cell(Context(tmp_path, little_data, stop=stop), cell, "")
        record = train_cell(Context(tmp_path, little_data), cell, "")
        assert record.conditions.threads == threads + 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_full_audit_of_a_network_that_was_trained_again_starts_again(
    small_study: None, tmp_path: Path, little_data: Dataset
) -> None:
    cell, stop, full = next(matrix.cells(SMALL)), threading.Event(), ranking.AuditInFull(20)

    def progress(stage: str, done: int, total: int) -> None:
        if (tmp_path / "audits" / cell.name).exists():
            stop.set()

    with pytest.raises(Interrupted, match="same command"):
        full(Context(tmp_path, little_data, None, progress, stop), cell, "")
    other, context = replace(cell, recipe=replace(cell.recipe, seed=7)), Context(tmp_path, little_data)
    train_cell(context, other, "")
    images, folder = ranking.validation_images(other, little_data, 20), tmp_path / "audits" / cell.name
    with pytest.raises(UserError, match="another"):
        audit_cell(context, other, images, ranking.judgment("full"), "", folder)
    assert audit_of(full(context, other, "")).members == 7  # six, and what is adaptive to AT


def test_the_recipe_robust_is_what_the_record_calls_the_most_robust() -> None:
    best = StudyRecord.read(Path(__file__).parents[2] / "results" / "embedded.json").most_robust
    cell = next(c for c in matrix.cells(StudySize(1)) if c.key == best)
    assert recipe("robust") == replace(cell.recipe, name="robust")


def test_fields_that_older_recipes_lack_change_no_hash_where_they_say_what_was_before() -> None:
    new = ranking.DEFAULTS_OF_OLD_RECIPES
    held = {**vars(sg.Recipe()), **vars(sg.AT()), **vars(sg.defenses.EMA())}
    assert {name: held[name] for name in new} == new
    of_at = {name: value for name, value in new.items() if name in vars(sg.AT())}
    cell = next(c for c in matrix.cells(StudySize(1)) if c.row == "AT, growing")
    (at,) = cell.recipe.defenses
    older = replace(cell, recipe=replace(cell.recipe, defenses=(replace(at, **of_at),)))
    text = str(ranking.without_new_fields(older.recipe.values()))
    assert not [name for name in new if name in text]
    assert "'steps': 2" in text
    assert "'eps_end': " in str(ranking.without_new_fields(cell.recipe.values()))
    assert ranking.fingerprint_of(older) != ranking.fingerprint_of(cell)


def test_a_study_with_new_rows_or_seeds_chooses_again_and_keeps_earlier_choices(
    monkeypatch: pytest.MonkeyPatch, run: RunStudy, tmp_path: Path
) -> None:
    """Rows by their lift over the frontier; nothing is trained."""
    lifts = {"TGO": 0.1}
    base = little_recipe()

    def cells(size: StudySize, seeds: Sequence[int] | None = None) -> Iterator[Cell]:
        rows = [("frontier", "AT 4/255"), ("frontier", "AT 8/255"), *(("AT", row) for row in lifts)]
        for seed in range(size.seeds) if seeds is None else seeds:
            yield from (Cell(group, row, seed, replace(base, seed=seed)) for group, row in rows)

    efforts: dict[str, Effort] = {"rank": "quick", "score": "standard", "audit in full": "full"}

    def rows_of(
        context: Context, work: Work, cells: Sequence[Cell], jobs: int
    ) -> Iterator[tuple[Cell, StudyRow]]:
        for cell in cells:
            clean, robust = {"AT 4/255": (0.8, 0.2), "AT 8/255": (0.6, 0.4)}.get(
                cell.row, (0.7, 0.3 + lifts.get(cell.row, 0.0))
            )
            fingerprint = ranking.fingerprint_of(cell, efforts[work.verb])
            yield cell, made_up_row(*cell.key, cell.seed, clean, robust, fingerprint=fingerprint)

    monkeypatch.setattr(matrix, "cells", cells)
    monkeypatch.setattr(stages, "rows_of", rows_of)
    first = run()
    assert first.best == ("AT", "TGO")
    lifts["RAT"] = 0.02
    lifts["RAT + TGO"] = 0.2
    second = run()
    assert second.best == ("AT", "RAT + TGO")
    assert first.test.items() <= second.test.items()
    assert set(second.finalists) <= set(second.test)
    confirmed = {(c.row, c.seed) for c in second.confirmed.values()}
    assert {("TGO", 100), ("RAT + TGO", 104)} <= confirmed
    assert {second.cells[name].row for name in second.full} == {"TGO", "RAT + TGO"}
    assert ("RAT", 100) not in confirmed
    text = text_of(page(second))
    assert "when the study had fewer rows or seeds: AT: TGO. It lies above the AT/TRADES frontier" in text
    assert "These are 2 tests on the same five seeds" in text
    for record, grown in ((first, False), (second, True)):
        assert ("for one seed, and rows or seeds were added later." in text_of(page(record))) == grown
    assert "Highest mean margin and mean worst case: AT: RAT + TGO. It lies above" in text
    assert run().best == second.best
    lifts["RAT"] = 0.6
    third = run(StudySize(seeds=2, epochs=1, ranked_on=20, scored_on=20))
    assert third.best == ("AT", "RAT")
    assert (second.chosen_on, third.chosen_on) == ((0,), (0, 1))
    assert len(third.confirmed) == len(second.confirmed) + 5
    later = {**second.cells, "new": made_up_row("AT", "new", 0, 0.7, 0.9)}
    text = text_of(page(replace(second, cells=later)))
    assert "AT: new has the highest mean margin; it was not tested" in text
    gone = {name: c for name, c in second.cells.items() if c.row != "TGO"}
    left = replace(second, cells=gone, finalists=tuple(n for n in second.finalists if n in gone))
    assert "| AT: RAT + TGO |" in page(left)


def test_nonsense_on_the_command_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "imagenet"]) == 2
    assert main(["sweep", "embedded", "--seeds", "0"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
