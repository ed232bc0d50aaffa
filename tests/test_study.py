"""The study: its matrix, its frontier, its record that goes on where it stopped, its page."""

import threading
from dataclasses import replace

import pytest
from conftest import little_recipe

import spikeguard as sg
import spikeguard.defenses
from spikeguard.cli.main import main
from spikeguard.errors import Interrupted, UserError
from spikeguard.records import read_json
from spikeguard.study import frontier, matrix
from spikeguard.study.matrix import Cell, Settings
from spikeguard.study.pages import page

SMALL = Settings(seeds=1, epochs=1, ranked_on=20, scored_on=20)


def test_the_matrix_has_every_defence_with_and_without_adversarial_training_and_every_regime_with_and_without_tgo():
    all_ = list(matrix.cells(Settings(seeds=2)))
    assert len({c.name for c in all_}) == len(all_)
    by = {(c.group, c.row) for c in all_}
    for row in matrix.ROWS:
        assert {("BPTT", row), ("AT", row)} <= by
    for row in matrix.REGIMES:
        assert {("regimes", row), ("regimes", f"{row}, TGO")} <= by
    used = {type(d) for c in all_ for d in c.recipe.defenses}
    assert used == set(sg.defenses.DEFENSES.values())
    assert [c.seed for c in all_] == sorted(c.seed for c in all_)
    same = ("network", "options", "timesteps", "neuron", "epochs", "batch_size", "lr", "weight_decay", "augment", "train_images")
    assert len({str([getattr(c.recipe, k) for k in same]) for c in all_}) == 1


@pytest.mark.parametrize(
    ("points", "clean", "expected"),
    [
        ([(0.8, 0.2), (0.6, 0.4)], 0.7, 0.3),
        ([(0.8, 0.2), (0.6, 0.4), (0.7, 0.25)], 0.7, 0.3),  # a point under the chord changes nothing
        ([(0.8, 0.2), (0.6, 0.4), (0.7, 0.38)], 0.7, 0.38),
        ([(0.8, 0.2), (0.6, 0.4)], 0.5, 0.4),
        ([(0.8, 0.2), (0.6, 0.4), (0.5, 0.1)], 0.55, 0.4),  # worse in both: no part of the frontier
        ([(0.8, 0.2), (0.6, 0.4)], 0.9, 0.2),
        ([(0.8, 0.2), (0.8, 0.3)], 0.8, 0.3),
    ],
)
def test_height_of_the_frontier(points, clean, expected):
    assert frontier.height(points, clean) == pytest.approx(expected)


def told(group, row, seed, clean, robust):
    return {"group": group, "row": row, "seed": seed, "clean": {"accuracy": clean}, "worst_case": {"accuracy": robust}}


def test_gaps_are_taken_seed_by_seed_and_their_bound_over_seeds():
    cells = {}
    for seed, lift in enumerate((0.0, 0.1, 0.0, 0.1, 0.05)):
        cells[f"a{seed}"] = told("frontier", "AT 4/255", seed, 0.8, 0.2 + lift)
        cells[f"b{seed}"] = told("frontier", "AT 8/255", seed, 0.6, 0.4 + lift)
        cells[f"c{seed}"] = told("AT", "TGO", seed, 0.7, 0.35 + lift)
    gaps = frontier.gaps(cells, "AT", "TGO")
    assert gaps == pytest.approx([0.05] * 5)
    assert frontier.lower_bound(gaps) == pytest.approx(0.05)
    assert frontier.lower_bound([0.1, 0.1]) is None
    assert frontier.lower_bound([0.1, -0.1, 0.1, -0.1, 0.05]) < 0


@pytest.fixture
def small_study(monkeypatch, little_data):
    """Three cells of seconds."""
    base = little_recipe(epochs=1, options={"width": 2}, validation=0.1)
    chosen = [("frontier", "AT 8/255", (sg.AT(steps=1),)), ("AT", "TGO", (sg.AT(steps=1), sg.TGO())), ("AT", "none", (sg.AT(steps=1),))]

    def cells(settings):
        for seed in range(settings.seeds):
            for group, row, defenses in chosen:
                yield Cell(group, row, seed, replace(base, name=f"{group} {row}", defenses=defenses, seed=seed))

    monkeypatch.setattr(matrix, "cells", cells)
    monkeypatch.setattr(matrix, "load_data", lambda name: little_data)


@pytest.mark.slow
def test_a_study_goes_on_where_it_stopped_and_its_page_says_what_is_missing(small_study, tmp_path):
    stop, seen = threading.Event(), []

    def tell(stage, done, total):
        seen.append(stage)
        if stage.startswith("2 of 3") and "control" in stage:
            stop.set()

    with pytest.raises(Interrupted):
        matrix.run(SMALL, tmp_path, tell, stop)
    half = read_json(tmp_path / matrix.MARK)
    assert 1 <= len(half["cells"]) < 3
    text = page(half)
    assert "not run" in text
    before = half["cells"]
    record = matrix.run(SMALL, tmp_path)
    assert all(record["cells"][k] == v for k, v in before.items())
    assert len(record["cells"]) == 3
    assert {record["cells"][name]["row"] for name in record["test"]} >= {"AT 8/255"}
    assert "3 of 3 networks were run" in page(record)
    assert matrix.run(SMALL, tmp_path)["cells"] == record["cells"]
    with pytest.raises(UserError, match="holds a study with settings"):
        matrix.run(replace(SMALL, epochs=2), tmp_path)
    more = matrix.run(replace(SMALL, seeds=2), tmp_path)
    assert len(more["cells"]) == 6


def test_the_page_claims_nothing_without_five_seeds():
    cells = {}
    for seed in range(5):
        for group, row, clean, robust in (("frontier", "AT 8/255", 0.7, 0.2), ("AT", "none", 0.7, 0.2), ("AT", "TGO", 0.7, 0.3)):
            rest = {"masking": {"PGD-20": 0.4}, "flags": [], "seconds": 1.0, "validation_accuracy": clean}
            cells[f"{group}{row}{seed}"] = {**told(group, row, seed, clean, robust), **rest}
    wanted = [[c["group"], c["row"], c["seed"]] for c in cells.values()]
    record = {"eps": 0.1, "settings": {"epochs": 4, "ranked_on": 100, "scored_on": 200}, "cells": cells, "test": {}, "wanted": wanted}
    assert "AT: TGO lies above the AT/TRADES frontier at its own clean accuracy: +10.0 points at least, over 5 seeds" in page(record)
    record["cells"] = {k: v for k, v in cells.items() if v["seed"] < 2}
    assert "a claim takes five seeds, 2 were run, so none is made" in page(record)
    record["cells"] = {k: {**v, "worst_case": {"accuracy": 0.2}} for k, v in cells.items()}
    assert "No combination lies above" in page(record)


def test_nonsense_on_the_command_line_is_one_line(capsys):
    assert main(["sweep", "imagenet"]) == 2
    assert main(["sweep", "embedded", "--seeds", "0"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
