"""The frontier, what is chosen over it, and what the study's page says; nothing is trained."""

from dataclasses import replace

import pytest
from narrow import present
from rows import failed, flagged, made_up_row, many, record_of, text_of

from spikeguard.auditing.suite import Effort
from spikeguard.records.studies import StudyMachine
from studies.embedded import frontier, matrix, ranking, stages
from studies.embedded.matrix import Key, StudySize
from studies.embedded.page import page
from studies.embedded.picture import picture


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
def test_robust_accuracy_of_the_frontier(
    points: list[tuple[float, float]], clean: float, expected: float
) -> None:
    assert frontier.frontier_at(points, clean) == pytest.approx(expected)


def test_margins_are_taken_seed_by_seed_and_their_bound_over_seeds_and_images() -> None:
    cells = many(5, 0.1)
    row = [c for c in cells.values() if c.row == "TGO"]
    assert [frontier.margin_over_frontier(c, cells) for c in row] == pytest.approx([0.1] * 5)
    assert frontier.best(cells) == ("AT", "TGO")
    bound = frontier.lower_bound(row, cells)
    assert 0 < present(bound) < 0.1  # images vary, even where seeds do not
    assert frontier.lower_bound(row[:2], cells) is None
    partly = {name: c for name, c in cells.items() if name != "b1"}
    assert frontier.margin_over_frontier(cells["c1"], partly) is None, "a part of the frontier would flatter"
    assert frontier.margins_over_frontier(row, partly) == pytest.approx([0.1] * 4)
    level = many(5, 0.0)
    assert present(frontier.lower_bound([c for c in level.values() if c.row == "TGO"], level)) < 0


def test_a_seed_that_has_only_begun_counts_for_nothing() -> None:
    cells = many(2, 0.1)
    begun = {
        "c2": made_up_row("AT", "TGO", 2, 0.7, 0.1),
        "a2": made_up_row("frontier", "AT 4/255", 2, 0.8, 0.6),
    }
    assert frontier.finished_seeds({**cells, **begun}) == cells
    assert frontier.finished_seeds({}) == {}
    assert frontier.best({**cells, **begun}) == ("AT", "TGO")
    text = text_of(page(record_of({**cells, **begun})))
    assert (
        "8 of 9 networks (3 ways to train, 3 seeds) were run; the means are over seeds 0, 1 (2 networks of "
        "a seed that is not complete" in text
    )
    assert "| TGO | 2 | 70.0 | 40.0 | 41.0 |" in text


def test_the_finalists_are_the_best_five_the_frontier_and_no_defense_of_the_first_seed() -> None:
    todo = list(matrix.cells(StudySize(seeds=2)))
    ranks = {key: number for number, key in enumerate(dict.fromkeys(c.key for c in todo))}
    cells = {
        c.name: made_up_row(c.group, c.row, c.seed, 0.9 - 0.005 * ranks[c.key], 0.005 * ranks[c.key])
        for c in todo
    }
    strangers = [
        c.name
        for c in todo
        if c.seed == 0 and not c.row.startswith(matrix.TWIN) and not matrix.on_frontier(c.key)
    ]
    names = stages.finalists(cells, todo)
    assert names[:5] == tuple(strangers[:-6:-1])
    assert set(names[5:]) == {c.name for c in todo if c.seed == 0 and matrix.on_frontier(c.key)} | {
        "bptt-none-0"
    }
    cells[names[0]] = flagged(cells[names[0]], ("no-gradient", "error"))
    assert stages.finalists(cells, todo)[0] == names[1]


def test_flagged_failed_and_incomplete_rows_are_never_the_best() -> None:
    cells = many(2, 0.1)
    for seed in range(2):
        robust = [made_up_row("AT", f"bad {k}", seed, 0.7, 0.69) for k in range(2)]
        cells[f"0{seed}"] = flagged(robust[0], ("decoy-logits", "error"))
        cells[f"1{seed}"] = failed(robust[1], "the loss is nan")
    cells["once"] = made_up_row("AT", "once", 0, 0.7, 0.69)
    assert frontier.best(cells) == ("AT", "TGO")
    assert frontier.best({k: v for k, v in cells.items() if v.group != "frontier"}) is None


def test_the_page_claims_nothing_without_five_fresh_seeds() -> None:
    record = record_of(many(3))
    assert "is chosen when every network is ranked" in text_of(page(record))
    assert "AT + TGO" in picture(record)
    assert "fresh seeds" not in picture(record)
    record = replace(record, best=("AT", "TGO"))
    assert "0 of the five fresh seeds ran: no claim" in text_of(page(record))
    above = (
        "AT: TGO. It lies above the AT/TRADES frontier at its own clean accuracy: mean margin +30.0 points"
    )
    sure = replace(record, confirmed=many(5, 0.3, 100))
    assert above in text_of(page(sure))
    assert "fresh seeds" in picture(sure)
    unsure = text_of(page(replace(record, confirmed=many(5, 0.01, 100))))
    assert "It does not lie above the AT/TRADES frontier at its own clean accuracy for certain" in unsure
    assert "mean margin +1.0" in unsure
    lacking = {name: c for name, c in many(5, 0.3, 100).items() if name[0] != "b"}
    text = text_of(page(replace(record, confirmed=lacking)))
    assert "no claim is made" in text, "all of the seeds lack the same point of the frontier"


def test_costs_compare_networks_of_the_same_kind_of_machine_only() -> None:
    cells = many(1) | {"none": made_up_row("AT", "none", 0, 0.7, 0.1)}
    line, gpu = "| TGO | 1 | 70.0 | 40.0 | 35.0 | 5.0 | +5.0 | {} |  |", StudyMachine(device="NVIDIA H200")
    assert line.format("") in page(record_of(cells))
    cells["c0"] = replace(cells["c0"], machine=gpu, seconds=3.0)
    cells["none"] = replace(cells["none"], machine=StudyMachine(instructions=("avx2",), threads=1))
    text = page(record_of(cells))
    assert line.format("") in text
    assert "2 on an unknown machine; 1 on NVIDIA H200; 1 on avx2 (1 thread)." in text_of(text)
    cells["none"] = replace(cells["none"], machine=gpu)
    assert line.format("3.0") in page(record_of(cells))


def test_what_an_older_version_scored_is_marked() -> None:
    cell = next(c for c in matrix.cells(StudySize(1)) if c.key == ("AT", "TGO"))
    row = made_up_row(*cell.key, 0, 0.7, 0.3)

    def scored(
        effort: Effort,
        fingerprint: str | None = None,
        finalists: tuple[str, ...] = (),
        best: Key | None = None,
    ) -> str:
        made = fingerprint or ranking.fingerprint_of(cell, effort)
        rows = {cell.name: replace(row, fingerprint=made)}
        record = replace(record_of({cell.name: row}), finalists=finalists, best=best)
        scored = replace(record, full=rows) if effort == "full" else replace(record, test=rows)
        return text_of(page(scored))

    assert "| AT: TGO | 70.0 |" in scored("standard", finalists=(cell.name,))
    assert "| AT: TGO (older version) | 70.0 |" in scored("standard", "another", finalists=(cell.name,))
    assert "first network of AT: TGO under `full`" in scored("full", best=cell.key)
    assert "first network of AT: TGO (older version) under `full`" in scored("full", "another", best=cell.key)


def test_lines_of_the_page_are_short_except_tables() -> None:
    record = replace(record_of(many(3)), best=("AT", "TGO"), confirmed=many(5, 0.3, 100))
    assert not [line for line in page(record).splitlines() if len(line) > 100 and line[0] not in "|!"]


def test_whatever_is_random_when_scored_says_how_it_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = list(matrix.cells(StudySize(1)))
    before = {c.name: ranking.fingerprint_of(c) for c in cells}
    monkeypatch.setattr(ranking, "JUDGE_VERSION", "another version")
    random = {c.row for c in cells if ranking.fingerprint_of(c) != before[c.name]}
    assert random == {"StoG", "RandHet", "input noise", "input quantization", "TGO, noise when scored"}
