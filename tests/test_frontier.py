"""The frontier, what is chosen over it, and what the study's page says; nothing is trained."""

import pytest
from rows import many, record_of, told
from spikeguard.study import frontier, matrix, ranking, sweep
from spikeguard.study.matrix import Settings
from spikeguard.study.pages import page
from spikeguard.study.picture import picture


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
    assert frontier.frontier_at(points, clean) == pytest.approx(expected)


def test_gaps_are_taken_seed_by_seed_and_their_bound_over_seeds_and_images():
    cells = many(5, 0.1)
    row = [c for c in cells.values() if c["row"] == "TGO"]
    assert [frontier.margin_over_frontier(c, cells) for c in row] == pytest.approx([0.1] * 5)
    assert frontier.best(cells) == ["AT", "TGO"]
    bound = frontier.lower_bound(row, cells)
    assert 0 < bound < 0.1  # images vary, even where seeds do not
    assert frontier.lower_bound(row[:2], cells) is None
    partly = {name: c for name, c in cells.items() if name != "b1"}
    assert frontier.margin_over_frontier(cells["c1"], partly) is None, "a part of the frontier would flatter"
    assert frontier.margins_over_frontier(row, partly) == pytest.approx([0.1] * 4)
    level = many(5, 0.0)
    assert frontier.lower_bound([c for c in level.values() if c["row"] == "TGO"], level) < 0


def test_a_seed_that_has_only_begun_counts_for_nothing():
    cells = many(2, 0.1)
    begun = {"c2": told("AT", "TGO", 2, 0.7, 0.1), "a2": told("frontier", "AT 4/255", 2, 0.8, 0.6)}
    assert frontier.whole({**cells, **begun}) == cells
    assert frontier.whole({}) == {}
    assert frontier.best({**cells, **begun}) == ["AT", "TGO"]
    text = page(record_of({**cells, **begun}))
    assert (
        "8 of 9 networks (3 ways to train, 3 seeds) were run; the means are over seeds 0, 1 (2 networks of "
        "a seed that is not whole" in text
    )
    assert "| TGO | 2 | 70.0 | 40.0 | 41.0 |" in text


def test_the_finalists_are_the_best_five_the_frontier_and_no_defense_of_the_first_seed():
    todo = list(matrix.cells(Settings(seeds=2)))
    ranks = {key: number for number, key in enumerate(dict.fromkeys(c.key for c in todo))}
    cells = {
        c.name: told(c.group, c.row, c.seed, 0.9 - 0.005 * ranks[c.key], 0.005 * ranks[c.key]) for c in todo
    }
    strangers = [
        c.name
        for c in todo
        if c.seed == 0
        and not c.row.startswith(matrix.TWIN)
        and not matrix.on_frontier({"group": c.group, "row": c.row})
    ]
    names = sweep.finalists({"cells": cells}, todo)
    assert names[:5] == strangers[:-6:-1]
    assert set(names[5:]) == {
        c.name for c in todo if c.seed == 0 and matrix.on_frontier({"group": c.group, "row": c.row})
    } | {"bptt-none-0"}
    cells[names[0]]["flags"] = [["no-gradient", "error"]]
    assert sweep.finalists({"cells": cells}, todo)[0] == names[1]


def test_flagged_failed_and_incomplete_rows_are_never_the_best():
    cells = many(2, 0.1)
    for k, change in enumerate(({"flags": [["decoy-logits", "error"]]}, {"failed": "the loss is nan"})):
        for seed in range(2):
            cells[f"{k}{seed}"] = {**told("AT", f"bad {k}", seed, 0.7, 0.69), **change}
    cells["once"] = told("AT", "once", 0, 0.7, 0.69)
    assert frontier.best(cells) == ["AT", "TGO"]
    assert frontier.best({k: v for k, v in cells.items() if v["group"] != "frontier"}) is None


def test_the_page_claims_nothing_without_five_fresh_seeds():
    record = record_of(many(3))
    assert "is chosen when every network is ranked" in page(record)
    assert "AT + TGO" in picture(record)
    assert "fresh seeds" not in picture(record)
    record |= {"best": ["AT", "TGO"], "finalists": []}
    assert "0 of those five seeds were run: no claim" in page(record)
    record["confirmed"] = many(5, 0.3, 100)
    assert (
        "AT: TGO. It lies above the AT/TRADES frontier at its own clean accuracy: mean gap +30.0 points"
        in page(record)
    )
    record["confirmed"] = many(5, 0.01, 100)
    assert (
        "AT: TGO. It does not lie above the AT/TRADES frontier at its own clean accuracy for certain: mean "
        "gap +1.0" in page(record)
    )
    assert "fresh seeds" in picture(record)
    record["confirmed"] = {name: c for name, c in many(5, 0.3, 100).items() if name[0] != "b"}
    assert "no claim is made" in page(record), "all of the seeds lack the same point of the frontier"


def test_costs_are_told_of_the_same_kind_of_machine_only_and_where_networks_were_made():
    cells = many(1) | {"none": told("AT", "none", 0, 0.7, 0.1)}
    record = record_of(cells)
    line = "| TGO | 1 | 70.0 | 40.0 | 35.0 | 5.0 | +5.0 | {} |  |"
    assert line.format("") in page(record)
    cells["c0"] |= {"machine": {"device": "NVIDIA H200"}, "seconds": 3.0}
    cells["none"]["machine"] = {"instructions": ["avx2"], "threads": 1}
    assert line.format("") in page(record)
    assert "2 on a machine that was not noted; 1 on NVIDIA H200; 1 on avx2 (1 thread)." in page(record)
    cells["none"]["machine"] = {"device": "NVIDIA H200"}
    assert line.format("3.0") in page(record)


def test_what_earlier_code_scored_is_marked():
    cell = next(c for c in matrix.cells(Settings(1)) if c.key == ("AT", "TGO"))
    row = told(*cell.key, 0, 0.7, 0.3)
    now, before = (
        {"test": {cell.name: {**row, "made": made}}}
        for made in (ranking.fingerprint_of(cell, "standard"), "another")
    )
    assert "| AT: TGO | 70.0 |" in page(record_of({cell.name: row}, finalists=[cell.name], **now))
    assert "| AT: TGO (by earlier code) | 70.0 |" in page(
        record_of({cell.name: row}, finalists=[cell.name], **before)
    )
    looks = {
        "looked_at": {cell.name: {**row, "members": 66, "made": ranking.fingerprint_of(cell, "full")}},
        "best": [*cell.key],
    }
    assert "first network of AT: TGO under `full`" in page(
        record_of({cell.name: row}, finalists=[cell.name], **looks)
    )
    looks["looked_at"][cell.name]["made"] = "another"
    assert "first network of AT: TGO (by earlier code) under `full`" in page(
        record_of({cell.name: row}, finalists=[cell.name], **looks)
    )


def test_whatever_is_random_when_scored_says_how_it_was_judged(monkeypatch):
    cells = list(matrix.cells(Settings(1)))
    before = {c.name: ranking.fingerprint_of(c) for c in cells}
    monkeypatch.setattr(ranking, "JUDGE_VERSION", "another version")
    random = {c.row for c in cells if ranking.fingerprint_of(c) != before[c.name]}
    assert random == {"StoG", "RandHet", "input noise", "input quantization", "TGO, noise when scored"}
