"""A table of networks by attacks: its columns, cells that are kept, texts, one line for what is wrong."""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from narrow import present
from torch import Tensor

import spikeguard as sg
from spikeguard.cli.main import main
from spikeguard.data.images import Images
from spikeguard.errors import Interrupted, UserError
from spikeguard.networks.classifier import Classifier
from spikeguard.records.schema import AttackRecord, Flag, Origin
from spikeguard.records.studies import DemoRecord
from spikeguard.records.tables import TableCell, TableColumn, TableRecord
from spikeguard.tables import measure
from spikeguard.tables.columns import column, columns, member, title, work
from spikeguard.tables.files import write_table
from spikeguard.tables.measure import Conditions, Subject, Watch
from spikeguard.tables.run import RECORD_NAME, tabulate
from spikeguard.tables.text import notes, rows
from spikeguard.threat import Linf

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("word", "attack", "settings", "eot"),
    [
        ("fgsm", "fgsm", {}, None),
        ("PGD20", "pgd", {"steps": 20, "restarts": 1}, None),
        ("pgd10-x5-eot3-margin", "pgd", {"steps": 10, "restarts": 5, "loss": "margin"}, 3),
        ("apgd50-dlr", "apgd", {"steps": 50, "loss": "dlr"}, None),
        ("mtpgd40-t3", "targeted", {"rule": "pgd", "steps": 40, "targets": 3}, None),
        ("apgdt20", "apgd_targeted", {"steps": 20}, None),
        ("square500", "square", {"queries": 500}, None),
        ("pgd2-atan:8", "pgd", {"steps": 2, "surrogate": "atan:8", "restarts": 1}, None),
        ("noise7", "random_noise", {"tries": 7}, None),
    ],
)
def test_a_word_is_an_attack_with_its_settings(
    word: str, attack: str, settings: dict[str, object], eot: int | None
) -> None:
    found = column(word)
    assert (found.attack, found.settings, found.eot) == (attack, settings, eot)
    assert member(found).all, "every image is attacked"


def test_an_effort_is_an_audit_and_longer_attacks_weigh_more() -> None:
    assert column("quick") == TableColumn("quick", "audit", effort="quick")
    assert title(column("quick")) == "worst case (quick)"
    assert title(column("pgd20-x5")) == "PGD-20, X5"
    weights = [work(column(w)) for w in ("fgsm", "pgd20", "pgd20-eot4", "mtpgd40", "quick")]
    assert weights[0] == 2
    assert weights[:4] == sorted(weights[:4])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pdg20", "unknown attack 'pdg'"),
        ("fgsm20", "takes no number of steps"),
        ("pgd20-fast", "unknown option 'fast'"),
        ("fgsm-x5", "fgsm has no restarts"),
        ("square100-eot5", "square has no eot"),
        ("pgd0", "must be at least 1"),
        ("pgd20,pgd20", "is there twice"),
        ("cw10", "works under l2, not under linf"),
        (",", "at least one attack"),
    ],
)
def test_a_wrong_column_is_one_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["table", "net", "--attacks", words, "--out", str(tmp_path / "t")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("eps", "message"),
    [("8", "must lie in [0, 1]"), ("2/255,2/255", "each budget once"), ("a lot", "must be a number")],
)
def test_a_wrong_budget_is_one_line(eps: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "net", "--eps", eps]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def two(tiny: Classifier, pair: tuple[Tensor, Tensor]) -> dict[str, Subject]:
    """The tiny network and one that is right less often, on seven images."""
    x, y = pair
    images = Images(x, y, torch.arange(7))
    flipped = Images(x, torch.cat([y[:5], (y[5:] + 1) % 10]), torch.arange(7))
    return {"a": Subject("a", tiny, images, Origin()), "b|": Subject("b|", tiny, flipped, Origin())}


@pytest.fixture
def conditions(tmp_path: Path) -> Conditions:
    threats = [Linf(2 / 255), Linf(8 / 255)]
    return Conditions(columns("fgsm,pgd3,pgd2-eot2", "linf"), threats, tmp_path / "table")


def test_a_stopped_table_goes_on_and_finished_cells_are_not_measured_again(
    two: dict[str, Subject], conditions: Conditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()

    def progress(stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        if "pgd3 at 8/255" in stage:
            stop.set()

    with pytest.raises(Interrupted, match="stopped in a, pgd3; what was found is kept: run the same"):
        tabulate(["a"], two.__getitem__, conditions, Watch(progress, stop))
    half = TableRecord.read(conditions.folder / RECORD_NAME)
    assert [c.column for c in half.rows[0].cells] == ["fgsm", "pgd3", "fgsm"]
    record = tabulate(["a"], two.__getitem__, conditions, Watch())
    assert record == TableRecord.read(conditions.folder / RECORD_NAME)
    (row,) = record.rows
    assert row.cells[:3] == half.rows[0].cells
    assert row.cell("pgd2-eot2", 8 / 255) is None, "averages over draws of a network without noise"
    for cell in row.cells:
        stored = AttackRecord.read(conditions.folder / present(cell.file))
        assert (stored.worst_case, stored.threat.eps) == (cell.accuracy, cell.eps)
    fgsm, pgd = (present(present(row.cell(n, 8 / 255)).accuracy).value for n in ("fgsm", "pgd3"))
    assert pgd <= fgsm <= row.clean.value
    monkeypatch.setattr(measure, "run_single", None)  # nothing may run
    assert tabulate(["a"], two.__getitem__, conditions, Watch()).rows == record.rows
    other = replace(two["a"], images=two["a"].images.select(torch.arange(5)))
    with pytest.raises(TypeError):  # other images: every cell is measured again
        tabulate(["a"], {"a": other}.__getitem__, conditions, Watch())


def test_networks_of_one_table_meet_the_same_images(two: dict[str, Subject], conditions: Conditions) -> None:
    with pytest.raises(UserError, match="met different images"):
        tabulate(list(two), two.__getitem__, conditions, Watch())


def test_an_attack_that_fails_leaves_a_dash_with_its_reason(
    two: dict[str, Subject], conditions: Conditions
) -> None:
    few = replace(conditions, columns=columns("fgsm,targeted2-dlr", "linf"), threats=[Linf(8 / 255)])
    whole, images = two["a"].model, replace(two["a"].images, y=two["a"].images.y % 3)

    def three_classes(x: Tensor) -> Tensor:
        return whole(x)[:, :3]

    fewer = replace(two["a"], model=three_classes, images=images)
    record = tabulate(["a"], {"a": fewer}.__getitem__, few, Watch())
    assert rows(record)[1][0][-1] == "-"
    assert any("dlr" in note for note in notes(record))


def test_a_table_is_written_as_csv_latex_markdown_and_picture(
    two: dict[str, Subject], conditions: Conditions
) -> None:
    record = tabulate(["a"], two.__getitem__, conditions, Watch())
    (row,) = record.rows
    bad = replace(row, network="b|&", cells=(replace(row.cells[0], flags=(("nothing-ran", "error"),)),))
    record = replace(record, rows=(row, bad))
    written = write_table(record, conditions.folder / RECORD_NAME)
    texts = {path.suffix: path.read_text() for path in written}
    assert set(texts) == {".csv", ".tex", ".md", ".svg"}
    header, (first, second) = rows(record)
    assert header[:3] == ["network", "clean", "FGSM at 2/255"]
    assert texts[".csv"].splitlines()[1].split(",")[: len(first)] == first
    assert second[2].endswith("*"), "the audit says that its number is not reliable"
    assert r"b|\&" in texts[".tex"]
    assert texts[".tex"].count(r" \\") == 3
    assert r"b\|&" in texts[".md"]
    assert "nothing-ran" in texts[".md"]
    assert "8/255" in texts[".svg"]


def test_a_cell_names_its_errors() -> None:
    flags = tuple((f.id, f.level) for f in (Flag("a", "error", ""), Flag("b", "info", "")))
    assert TableCell("fgsm", 0.1, flags=flags).errors == ("a",)


def test_the_verb_attacks_a_run_and_audits_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored = DemoRecord.read(ROOT / "results" / "demo.json").networks[0].attacks["8/255"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "audit", lambda *_, **__: SimpleNamespace(record=stored))
    recipe = sg.Recipe(train_images=20, validation=0.0, epochs=1, batch_size=20, options={"width": 2})
    sg.train(recipe, out="first")
    assert main(["table", "first", "--attacks", "fgsm,quick", "--images", "20", "--out", "t"]) in (0, 1)
    record = TableRecord.read(Path("t") / RECORD_NAME)
    (row,) = record.rows
    assert row.cells[1].accuracy == stored.worst_case
    assert row.cells[1].masking is not None
    assert "worst case (quick)" in capsys.readouterr().out
    assert main(["verify", str(Path("t") / present(row.cells[0].file))]) == 0
