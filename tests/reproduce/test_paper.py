"""The paper's experiments: as data, run in seconds, resumed, and on a page."""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from narrow import present

from spikeguard.cli import reproduce as verb
from spikeguard.cli.main import main
from spikeguard.data.images import Dataset
from spikeguard.defenses import AT, RAT, TGO
from spikeguard.errors import Interrupted, UserError
from spikeguard.records.lock import locked
from spikeguard.records.reproduction import ReproductionRecord, ReproductionRow
from spikeguard.records.schema import Accuracy, Origin
from spikeguard.records.studies import DemoRecord
from spikeguard.records.tables import TableCell, TableRow
from spikeguard.records.training import TrainingRecord
from spikeguard.reproduce import run as module
from spikeguard.reproduce.compare import gains, lines
from spikeguard.reproduce.page import notes, reading, table, write_pages
from spikeguard.reproduce.paper import FULL, Paper, Scale, paper
from spikeguard.reproduce.run import RECORD_NAME, Plan, reproduce
from spikeguard.runtime.machine import machine
from spikeguard.sweep.cells import Cell, Context, train_cell
from spikeguard.tables import measure
from spikeguard.tables.columns import column
from spikeguard.tables.measure import Watch
from spikeguard.training.checkpoint import RECORD

ROOT = Path(__file__).parents[2]
TINY = {
    "options": {"width": 2},
    "timesteps": 2,
    "train_images": 50,
    "validation": 0.2,
    "epochs": 1,
    "batch_size": 20,
    "augment": False,
}


def test_the_command_line_knows_the_experiments_and_scales_of_the_file() -> None:
    assert tuple(paper().experiments) == verb.EXPERIMENTS
    assert tuple(paper().scales) == verb.SCALES


@pytest.mark.parametrize("experiment", verb.EXPERIMENTS)
def test_every_row_has_a_recipe_at_every_scale_and_a_column_for_every_number(experiment: str) -> None:
    chosen = paper().experiment(experiment)
    for scale in paper().scales:
        recipes = [paper().recipe(experiment, scale, row, 3) for row in chosen.rows]
        assert {r.seed for r in recipes} == {3}
        assert len({str({**r.values(), "name": ""}) for r in recipes}) == len(recipes), "rows differ"
        assert paper().columns(experiment, scale)[-1].effort == paper().scale(scale).effort
    for row in chosen.rows:
        assert set(row.published) <= {"clean", *chosen.columns}
        assert all(0 <= value <= 100 for value in row.published.values())
    assert all(column(word) for word in chosen.columns)
    assert set(chosen.guard) == set(paper().scales)
    assert not paper().deviations(experiment, FULL)
    assert any("epochs" in line for line in paper().deviations(experiment, "mini"))


def test_the_rows_are_trained_as_the_paper_says() -> None:
    rows = {row.name: row for row in paper().experiment("table1").rows}
    full = paper().recipe("table1", "paper", rows["RAT + TGO"], 0)
    assert (full.network, full.data, full.timesteps, full.weight_decay) == ("wrn16", "cifar10", 4, 0.0)
    assert full.neuron.decay == 1.0
    at, rat, tgo = full.defenses
    assert isinstance(at, AT)
    assert (at.eps, at.steps, at.step_size) == (2 / 255, 2, 1 / 255)
    assert isinstance(rat, RAT)
    assert isinstance(tgo, TGO)
    assert tgo.lambda_max == 0.4
    parts = {row.name: row for row in paper().experiment("ablation").rows}
    mc, nlif = (paper().recipe("ablation", "paper", parts[f"BPTT + {n}"], 0) for n in ("MC", "NLIF"))
    found = [d for r in (mc, nlif) for d in r.defenses if isinstance(d, TGO)]
    assert [(d.lambda_max, d.sigma) for d in found] == [(0.6, 0.0), (0.0, 0.1)]
    assert "step_size" in paper().columns("table1", "mini")[2].settings
    assert paper().budget == 8 / 255


@pytest.fixture
def tiny_paper(monkeypatch: pytest.MonkeyPatch) -> Paper:
    """Two rows of table 1 in a second; the audit is one that was stored."""
    stored = DemoRecord.read(ROOT / "results" / "demo.json").networks[0].attacks["8/255"]
    monkeypatch.setattr(measure, "audit", lambda *_, **__: SimpleNamespace(record=stored))
    whole = paper()
    first = replace(whole.experiments["table1"], columns=("fgsm", "pgd2"))
    scale = Scale("tiny", 20, "quick", {**TINY})
    return replace(whole, experiments={"table1": first}, scales={"mini": scale, FULL: whole.scales[FULL]})


PLAN = Plan("table1", "mini", rows=("AT", "AT + TGO"))


def test_an_experiment_goes_on_where_it_stopped_and_its_page_shows_both_numbers(
    tiny_paper: Paper, little_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, shown = threading.Event(), []

    def progress(stage: str, done: int, total: int) -> None:
        shown.append((done, total))
        if stage.startswith("at---tgo-0, pgd2"):
            stop.set()

    with pytest.raises(Interrupted, match="same command"):
        reproduce(tiny_paper, PLAN, tmp_path, little_data, watch=Watch(progress, stop))
    assert all(0 <= done <= total for done, total in shown), "parts of one whole, for the time left"
    assert [done for done, _ in shown] == sorted(done for done, _ in shown)
    half = ReproductionRecord.read(tmp_path / RECORD_NAME)
    assert [row.row for row in half.rows] == ["AT"]
    assert "Not finished: BPTT, BPTT + TGO, AT + TGO" in " ".join(notes(half, tiny_paper))
    trained: list[str] = []

    def counted(context: Context, cell: Cell, title: str) -> TrainingRecord:
        if not (context.run_folder(cell) / RECORD).exists():
            trained.append(cell.name)
        return train_cell(context, cell, title)

    monkeypatch.setattr(module, "train_cell", counted)
    record = reproduce(tiny_paper, PLAN, tmp_path, little_data)
    assert not trained, "both networks were trained before"
    assert record == ReproductionRecord.read(tmp_path / RECORD_NAME)
    assert record.rows[0] == half.rows[0]
    assert [row.row for row in record.rows] == ["AT", "AT + TGO"]
    more = reproduce(tiny_paper, replace(PLAN, seeds=(0, 1), rows=("AT",)), tmp_path, little_data)
    assert [(r.row, r.seed) for r in more.rows] == [("AT", 0), ("AT", 1), ("AT + TGO", 0)]
    assert len(trained) == 1

    line = next(line for line in lines(more, tiny_paper) if line.row.name == "AT")
    assert line.seeds == 2
    assert line.pairs["fgsm"].published == 39.14
    cell = present(present(record.rows[0].table).cell("fgsm", 8 / 255))
    assert (record.rows[0].table, cell.errors) == (record.rows[0].table, ())
    files = {path.name: path.read_text() for path in write_pages(more, tiny_paper, tmp_path)}
    assert set(files) == {"index.html", "table.csv", "table.tex", "table.md", "table.svg"}
    header, rows = table(more, tiny_paper)
    assert header[2:6] == ["clean", "FGSM", "PGD-2", "worst case (quick)"]
    assert rows[2][3] == f"39.14 / {present(line.pairs['fgsm'].ours):.1f}"
    assert rows[0][1:4] == ["0", "93.32 / -", "14.05 / -"]
    for text in (files["index.html"], files["table.md"]):
        assert "CIFAR10-DVS (appendix): not reproduced" in text
    assert "93.32 /" in files["index.html"]
    assert "epochs = 1 instead of 200" in files["index.html"]
    assert all(one.partition(":")[0][:20] in files["index.html"] for one in tiny_paper.assumed)
    assert r"39.14 / " in files["table.tex"]

    slower = {**TINY, "lr": 0.05}
    changed = replace(tiny_paper, scales={**tiny_paper.scales, "mini": Scale("tiny", 20, "quick", slower)})
    other = reproduce(changed, replace(PLAN, rows=("AT",)), tmp_path, little_data)
    assert [row.row for row in other.rows] == ["AT"], "another recipe: the rows of before are outdated"
    assert trained == ["at-1"], "the run of another recipe is there, train_cell replaces it"


def test_what_is_wrong_is_one_line(tiny_paper: Paper, little_data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no row 'XT'"):
        reproduce(tiny_paper, replace(PLAN, rows=("XT",)), tmp_path, little_data)
    with pytest.raises(UserError, match="unknown experiment 'table2'"):
        reproduce(tiny_paper, Plan("table2", "mini"), tmp_path, little_data)
    with locked(tmp_path), pytest.raises(UserError, match="in use by process"):
        reproduce(tiny_paper, PLAN, tmp_path, little_data)


def test_a_network_that_cannot_be_trained_is_recorded_with_its_reason(
    tiny_paper: Paper, little_data: Dataset, tmp_path: Path
) -> None:
    wild = replace(
        tiny_paper,
        scales={**tiny_paper.scales, "mini": Scale("", 20, "quick", {**TINY, "options": {"wings": 2}})},
    )
    record = reproduce(wild, Plan("table1", "mini", rows=("BPTT",)), tmp_path, little_data)
    assert "no option 'wings'" in present(record.rows[0].failed)
    assert "no option 'wings'" in " ".join(notes(record, wild))


def made(claimed: Paper, shares: dict[str, tuple[float, float]]) -> ReproductionRecord:
    """A record with these accuracies under PGD-2 and in the worst case, by row; all else is one half."""

    def row(name: str, method: str, attacked: float, worst: float) -> ReproductionRow:
        values = {"fgsm": 0.5, "pgd2": attacked, "quick": worst}
        cells = tuple(TableCell(c, claimed.budget, Accuracy.of(v, 1000)) for c, v in values.items())
        whole = TableRow(name, Origin(), Accuracy.of(0.5, 1000), "", "", False, cells)
        return ReproductionRow("AT", method, 0, {}, "", table=whole)

    columns = claimed.columns("table1", "mini")
    rows = tuple(row(name, "TGO" if "TGO" in name else "none", *found) for name, found in shares.items())
    return ReproductionRecord("table1", "mini", 1000, claimed.budget, columns, 6, machine(), rows)


def test_a_gain_that_the_audit_takes_back_is_named(tiny_paper: Paper) -> None:
    whole = tiny_paper.experiments["table1"]
    published = [{**row.published, "pgd2": 10.0 + 20 * ("TGO" in row.name)} for row in whole.rows]
    rows = tuple(replace(row, published=new) for row, new in zip(whole.rows, published, strict=True))
    claimed = replace(tiny_paper, experiments={"table1": replace(whole, rows=rows)})
    masked = made(claimed, {"AT": (0.2, 0.1), "AT + TGO": (0.5, 0.1)})
    assert "30.0 points of that gain do not survive the audit" in " ".join(reading(masked, claimed))
    real = made(claimed, {"AT": (0.2, 0.1), "AT + TGO": (0.5, 0.4)})
    assert "The audit leaves all of it." in " ".join(reading(real, claimed))
    by_column = {g.column: g for g in gains(real, claimed)}
    assert (by_column["pgd2"].published, by_column["pgd2"].same_sign) == (20.0, True)
    assert not by_column["pgd2"].chance
    assert by_column["fgsm"].chance
    worse = made(claimed, {"AT": (0.5, 0.1), "AT + TGO": (0.2, 0.1)})
    assert {g.column: g for g in gains(worse, claimed)}["pgd2"].same_sign is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table9"], "unknown experiment 'table9'"),
        (["table1", "--cell", "AT"], "--cell is for a record"),
        (["record.json", "--scale", "mini"], "not for a record"),
        (["table1", "--rows", "XT"], "has no row 'XT'"),
        (["table1", "--scale", "huge"], "invalid choice"),
    ],
)
def test_a_wrong_command_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_the_verb_writes_record_and_page(
    tiny_paper: Paper,
    little_data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from spikeguard.data import sources
    from spikeguard.reproduce import paper as file

    monkeypatch.setattr(file, "paper", lambda: tiny_paper)
    monkeypatch.setattr(sources, "load_data", lambda *_: little_data)
    assert main(["reproduce", "table1", "--rows", "BPTT", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "93.32 / " in said
    assert "not reproduced" in said
    assert (tmp_path / "index.html").exists()
    assert ReproductionRecord.read(tmp_path / RECORD_NAME).rows[0].row == "BPTT"
    assert module.STAGES in {path.name for path in tmp_path.iterdir()}
    (tmp_path / "index.html").unlink()

    def stopped(*_: object, **__: object) -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr(module, "reproduce", stopped)
    assert main(["reproduce", "table1", "--out", str(tmp_path)]) in (130, 143)
    assert (tmp_path / "index.html").exists(), "a page of what is finished"
