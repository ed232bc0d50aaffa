"""The study: its matrix, its frontier, its record that goes on where it stopped, its page."""

import multiprocessing
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import little_recipe
from rows import told
from spikeguard.study import matrix, ranking, sweep
from spikeguard.study.matrix import Cell, Settings
from spikeguard.study.pages import page

import spikeguard as sg
from spikeguard.auditing import suite
from spikeguard.cli.main import main
from spikeguard.defenses import DEFENSES
from spikeguard.errors import Interrupted, UserError
from spikeguard.records.files import read_json
from spikeguard.training.loop import train
from spikeguard.training.recipes import recipe

SMALL = Settings(seeds=1, epochs=1, ranked_on=20, scored_on=20)


def test_the_matrix_has_every_defense_with_and_without_at_and_every_regime_with_and_without_tgo():
    all_ = list(matrix.cells(Settings(seeds=2)))
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


@pytest.fixture
def small_study(monkeypatch, little_data, short_controls):
    """Three cells of seconds."""
    base = little_recipe(epochs=1, options={"width": 2}, validation=0.1)
    chosen = [
        ("frontier", "AT 8/255", (sg.AT(steps=1),)),
        ("AT", "TGO", (sg.AT(steps=1), sg.TGO())),
        ("AT", "none", (sg.AT(steps=1),)),
    ]

    def cells(settings, seeds=None):
        for seed in range(settings.seeds) if seeds is None else seeds:
            for group, row, defenses in chosen:
                yield Cell(
                    group, row, seed, replace(base, name=f"{group} {row}", defenses=defenses, seed=seed)
                )

    monkeypatch.setattr(matrix, "cells", cells)
    monkeypatch.setattr(sweep, "load_data", lambda name: little_data)
    monkeypatch.setitem(suite.SUITES, "quick", suite.QUICK[:4])
    monkeypatch.setitem(suite.SUITES, "standard", suite.STANDARD[:4])
    monkeypatch.setitem(suite.SUITES, "full", suite.QUICK[:6])
    monkeypatch.setattr(ranking, "MORE_AT_LAST", suite.QUICK[2:3])
    whole = ranking.told
    monkeypatch.setattr(
        ranking, "told", lambda record: {**whole(record), "flags": []}
    )  # networks this small are flagged now and then


@pytest.mark.slow
def test_a_study_goes_on_where_it_stopped_and_its_page_says_what_is_missing(small_study, tmp_path):
    stop = threading.Event()

    def tell(stage, done, total):
        if stage.startswith("2 of 3") and "control" in stage:
            stop.set()

    with pytest.raises(Interrupted):
        sweep.run(SMALL, tmp_path, tell, stop)
    half = read_json(tmp_path / sweep.MARK)
    assert 1 <= len(half["cells"]) < 3
    assert "not run" in page(half)
    ranked = sweep.run(SMALL, tmp_path, finish=False)
    assert all(ranked["cells"][k] == v for k, v in half["cells"].items())
    assert len(ranked["cells"]) == 3
    assert not ranked["test"]
    shutil.rmtree(
        tmp_path / "runs"
    )  # the record travels, the networks do not: the finalists are trained again
    record = sweep.run(SMALL, tmp_path)
    assert set(record["test"]) == set(record["finalists"])
    (looked,) = record["looked_at"].values()
    assert looked["members"] == 8  # six, and what is adaptive to AT and TGO
    assert (
        looked["worst_case"]["accuracy"]
        <= record["cells"][next(iter(record["looked_at"]))]["worst_case"]["accuracy"]
    )
    assert {c["seed"] for c in record["confirmed"].values()} == {100, 101, 102, 103, 104}
    text = page(record)
    assert "3 of 9 networks (3 ways to train, 3 seeds) were run; the means are over seed 0." in text
    assert "(trained anew)" in text
    assert "under `full` (8 members) on the images that ranked it" in text
    assert "lie above the AT/TRADES frontier" in text
    again = sweep.run(SMALL, tmp_path)
    assert all(again[k] == record[k] for k in ("cells", "test", "best", "looked_at"))
    with pytest.raises(UserError, match="holds a study with settings"):
        sweep.run(replace(SMALL, epochs=2), tmp_path)


@pytest.mark.slow
def test_a_network_made_in_another_way_is_made_again_and_one_that_fails_is_told(
    small_study, tmp_path, monkeypatch
):
    first = sweep.run(SMALL, tmp_path, finish=False)
    cells = matrix.cells

    def changed(settings, seeds=None):
        for cell in cells(settings, seeds):
            lr = {"TGO": 0.05, "none": 1e6}.get(cell.row, cell.recipe.lr)
            yield replace(cell, recipe=replace(cell.recipe, lr=lr))

    monkeypatch.setattr(matrix, "cells", changed)
    second = sweep.run(SMALL, tmp_path, finish=False)
    names = {c["row"]: name for name, c in first["cells"].items()}
    assert second["cells"][names["AT 8/255"]] == first["cells"][names["AT 8/255"]]
    assert second["cells"][names["TGO"]]["made"] != first["cells"][names["TGO"]]["made"]
    assert "lower lr" in second["cells"][names["none"]]["failed"]
    assert "failed" in page(second)


@pytest.mark.slow
def test_networks_ranked_side_by_side_are_those_ranked_in_turn_whatever_ends_a_process(
    small_study, tmp_path, monkeypatch
):
    monkeypatch.setitem(suite.SUITES, "quick", suite.QUICK)  # what the other processes have
    settings, killed, policy = replace(SMALL, seeds=1), [], os.environ.get("OMP_WAIT_POLICY")

    def kill(stage, done, total):
        if not killed and (workers := multiprocessing.active_children()):
            killed.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)

    with pytest.raises(UserError, match="was ended"):
        sweep.run(settings, tmp_path / "beside", kill, finish=False, jobs=2)
    stop = threading.Event()
    with pytest.raises(Interrupted):
        sweep.run(
            settings,
            tmp_path / "beside",
            lambda stage, done, total: stop.set() if done else None,
            stop,
            finish=False,
            jobs=2,
        )
    assert 1 <= len(read_json(tmp_path / "beside" / sweep.MARK)["cells"]) < 3
    beside = sweep.run(settings, tmp_path / "beside", finish=False, jobs=2)["cells"]
    assert list(beside) == [cell.name for cell in matrix.cells(settings)], (
        "ties go by the order of the record"
    )
    assert os.environ.get("OMP_WAIT_POLICY") == policy, "what is begun later is none of ours"
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        in_turn = sweep.run(settings, tmp_path / "turn", finish=False)["cells"]
    finally:
        torch.set_num_threads(threads)
    assert beside.keys() == in_turn.keys()
    for name, row in in_turn.items():
        for what in ("made", "validation_accuracy", "right", "right_clean", "machine"):
            assert beside[name][what] == row[what], (name, what)


def test_a_training_begun_with_other_threads_is_begun_anew_instead_of_failing(
    small_study, tmp_path, little_data
):
    cell, stop, threads = next(matrix.cells(SMALL)), threading.Event(), torch.get_num_threads()
    stop.set()
    with pytest.raises(Interrupted):
        train(cell.recipe, tmp_path / "runs" / cell.name, data=little_data, stop=stop)
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(UserError, match="threads"):
            train(cell.recipe, tmp_path / "runs" / cell.name, True, data=little_data)
        with pytest.raises(Interrupted, match="same command"):
            ranking.Bench(SMALL, tmp_path, little_data, None, stop=stop).trained(cell, "")
        assert (
            ranking.Bench(SMALL, tmp_path, little_data, None).trained(cell, "")["conditions"]["threads"]
            == threads + 1
        )
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_look_at_a_network_that_was_made_anew_begins_anew(small_study, tmp_path, little_data):
    cell, stop = next(matrix.cells(SMALL)), threading.Event()

    def tell(stage, done, total):
        if (tmp_path / "audits" / cell.name).exists():
            stop.set()

    with pytest.raises(Interrupted, match="same command"):
        ranking.Bench(SMALL, tmp_path, little_data, None, tell, stop).looked_at(cell, "")
    other = replace(cell, recipe=replace(cell.recipe, seed=7))
    bench = ranking.Bench(SMALL, tmp_path, little_data, None)
    bench.trained(other, "")
    with pytest.raises(UserError, match="another"):
        bench.audited(other, bench.held(other), matrix.EPS, "full", "", tmp_path / "audits" / cell.name)
    assert bench.looked_at(other, "")["members"] == 7  # six, and what is adaptive to AT


def test_the_recipe_robust_is_what_the_record_calls_the_most_robust():
    best = read_json(Path(__file__).parents[1] / "results" / "embedded.json")["most_robust"]
    cell = next(c for c in matrix.cells(Settings(1)) if list(c.key) == best)
    assert recipe("robust") == replace(cell.recipe, name="robust")


def test_fields_that_older_recipes_lack_change_no_hash_where_they_say_what_was_before():
    assert all(getattr(sg.AT(), name) == value for name, value in ranking.DEFAULTS_OF_OLD_RECIPES.items())
    cell = next(c for c in matrix.cells(Settings(1)) if c.row == "AT, growing")
    (at,) = cell.recipe.defenses
    older = replace(
        cell, recipe=replace(cell.recipe, defenses=(replace(at, **ranking.DEFAULTS_OF_OLD_RECIPES),))
    )
    text = str(ranking._told(older.recipe.values()))
    assert not [name for name in ranking.DEFAULTS_OF_OLD_RECIPES if name in text]
    assert "'steps': 2" in text
    assert "'eps_end': " in str(ranking._told(cell.recipe.values()))
    assert ranking.fingerprint_of(older) != ranking.fingerprint_of(cell)


def test_a_study_that_got_other_rows_or_seeds_chooses_again_and_keeps_what_was_asked_before(
    monkeypatch, tmp_path, little_data
):
    """Rows by their lift over the frontier; nothing is trained."""
    lifts = {"TGO": 0.1}
    base = little_recipe()

    def cells(settings, seeds=None):
        rows = [("frontier", "AT 4/255"), ("frontier", "AT 8/255"), *(("AT", row) for row in lifts)]
        for seed in range(settings.seeds) if seeds is None else seeds:
            yield from (Cell(group, row, seed, replace(base, seed=seed)) for group, row in rows)

    efforts = {"ranked": "quick", "scored": "standard", "looked_at": "full"}

    def rows(bench, work, todo, jobs):
        for cell in todo:
            group, row, seed = cell.group, cell.row, cell.seed
            clean, robust = {"AT 4/255": (0.8, 0.2), "AT 8/255": (0.6, 0.4)}.get(
                row, (0.7, 0.3 + lifts.get(row, 0.0))
            )
            yield (
                cell,
                {
                    **told(group, row, seed, clean, robust),
                    "made": ranking.fingerprint_of(cell, efforts[work]),
                    "members": 66,
                },
            )

    monkeypatch.setattr(matrix, "cells", cells)
    monkeypatch.setattr(sweep, "load_data", lambda name: little_data)
    monkeypatch.setattr(sweep, "rows", rows)
    settings = Settings(seeds=1)
    first = sweep.run(settings, tmp_path)
    assert first["best"] == ["AT", "TGO"]
    lifts["RAT"] = 0.02
    lifts["RAT + TGO"] = 0.2
    second = sweep.run(settings, tmp_path)
    assert second["best"] == ["AT", "RAT + TGO"]
    assert first["test"].items() <= second["test"].items()
    assert set(second["finalists"]) <= set(second["test"])
    asked = {(c["row"], c["seed"]) for c in second["confirmed"].values()}
    assert {("TGO", 100), ("RAT + TGO", 104)} <= asked
    assert {second["cells"][name]["row"] for name in second["looked_at"]} == {"TGO", "RAT + TGO"}
    assert ("RAT", 100) not in asked
    text = page(second)
    assert "when the study had fewer rows or seeds: AT: TGO. It lies above the AT/TRADES frontier" in text
    assert "2 questions to the same five seeds" in text
    for record, later in ((first, False), (second, True)):
        assert ("for one seed, and rows or seeds were added after it was begun." in page(record)) == later
    assert "Highest mean gap and mean worst case: AT: RAT + TGO. It lies above" in text
    assert sweep.run(settings, tmp_path)["best"] == second["best"]
    lifts["RAT"] = 0.6
    third = sweep.run(Settings(seeds=2), tmp_path)
    assert third["best"] == ["AT", "RAT"]
    assert (second["chosen_on"], third["chosen_on"]) == ([0], [0, 1])
    assert len(third["confirmed"]) == len(second["confirmed"]) + 5
    later = {**second["cells"], "new": told("AT", "new", 0, 0.7, 0.9)}
    assert "AT: new has the highest mean gap; it was not asked" in page({**second, "cells": later})
    gone = {name: c for name, c in second["cells"].items() if c["row"] != "TGO"}
    assert "| AT: RAT + TGO |" in page(
        {**second, "cells": gone, "finalists": [n for n in second["finalists"] if n in gone]}
    )


def test_nonsense_on_the_command_line_is_one_line(capsys):
    assert main(["sweep", "imagenet"]) == 2
    assert main(["sweep", "embedded", "--seeds", "0"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
