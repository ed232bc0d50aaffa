"""A network of a record, trained and measured again: which records can be, and when the numbers agree."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from narrow import present

import spikeguard as sg
from spikeguard.auditing.single import SingleAttack, run_single, single_member
from spikeguard.cli.main import main
from spikeguard.data.images import Dataset
from spikeguard.errors import Interrupted, UserError
from spikeguard.records.base import Record
from spikeguard.records.build import frozen
from spikeguard.records.cells import CellRecord
from spikeguard.records.reproduction import AgreementRecord, ReproductionRecord, ReproductionRow
from spikeguard.records.schema import Accuracy, Budget, Masking, MergedPart, Origin, Settings, SuiteId
from spikeguard.records.studies import DemoRecord, StudyAudit, StudyRow
from spikeguard.records.tables import TableCell, TableColumn, TableRecord, TableRow
from spikeguard.records.training import TrainingRecord
from spikeguard.reproduce.again import Again, allowance, reproduce_record, rows, verdict
from spikeguard.reproduce.sources import source_of
from spikeguard.runtime.machine import machine
from spikeguard.sweep.cells import MORE
from spikeguard.sweep.matrix import SweepSettings
from spikeguard.sweep.run import SweepRecord
from spikeguard.tables import measure
from spikeguard.tables.measure import Watch
from spikeguard.threat import Linf
from spikeguard.training.checkpoint import RECORD
from spikeguard.training.recipes import recipe as named

ROOT = Path(__file__).parents[2]
RECIPE = sg.Recipe(
    options={"width": 2},
    timesteps=2,
    train_images=200,
    validation=0.2,
    epochs=1,
    batch_size=40,
    augment=False,
)
HALF = Accuracy.of(0.5, 20)
AUDIT = StudyAudit(
    HALF,
    Accuracy.of(0.1, 20),
    Masking(0.3, 0, 0.2, 0, 0.1),
    (),
    (),
    (),
    SuiteId("suite-v4", "quick", ""),
    1.0,
)
Again_ = Callable[[Path], AgreementRecord]


@pytest.fixture
def again(little_data: Dataset, tmp_path: Path) -> Again_:
    """Reproduce a record on the little data, with one seed."""

    def run(path: Path) -> AgreementRecord:
        how = Again(out=tmp_path / "again")
        return reproduce_record(path, None, how, Watch(), little_data)[0]

    return run


def test_a_training_comes_out_again_bit_by_bit_and_a_wrong_number_is_found(
    little_data: Dataset, tmp_path: Path, again: Again_
) -> None:
    sg.train(RECIPE, tmp_path / "first", data=little_data)
    path = tmp_path / "first" / RECORD
    found = again(path)
    assert (found.same_weights, found.agrees, found.spread_known) == (True, True, False)
    assert [n.says for n in found.numbers] == ["same"]
    assert verdict(found).startswith("The same weights, bit by bit. Agrees")
    assert AgreementRecord.read(tmp_path / "again" / "agreement.json") == found
    assert rows(found)[1][0][0] == "validation"
    replace(TrainingRecord.read(path), kept_accuracy=1.0).write(path)
    wrong = again(path)
    assert not wrong.agrees
    assert "Differs by more than what the choice of images explains: validation" in verdict(wrong)
    assert "--seeds 3" in verdict(wrong)


def test_an_attack_meets_the_same_images_with_the_same_draws(
    little_data: Dataset, tmp_path: Path, again: Again_
) -> None:
    run = sg.train(RECIPE, tmp_path / "first", data=little_data)
    images = little_data.test.balanced(20)
    settings: Settings = {
        "loss": "ce",
        "surrogate": "atan:4",
        "eot": None,
        "step_size": None,
        "steps": 2,
        "restarts": 1,
    }
    what = SingleAttack("pgd", settings, single_member("pgd", settings), Linf(4 / 255))
    origin = Origin("first", "embedded", split="test", images=20, recipe=frozen(RECIPE.values()))
    path = tmp_path / "attack.json"
    record = run_single(what, run.net, images, path, origin)
    found = again(path)
    assert [n.published for n in found.numbers] == [record.clean, record.worst_case]
    assert [n.says for n in found.numbers] == ["same", "same"]
    replace(record, digests=replace(present(record.digests), images="other")).write(path)
    with pytest.raises(UserError, match="about other images"):
        again(path)
    replace(record, origin=Origin("my.module:net")).write(path)
    with pytest.raises(UserError, match="names no recipe"):
        again(path)


def test_an_audit_is_compared_in_clean_accuracy_own_pgd_and_worst_case(
    tmp_path: Path, again: Again_, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = DemoRecord.read(ROOT / "results" / "demo.json").networks[0].attacks["8/255"]
    monkeypatch.setattr(measure, "audit", lambda *_, **__: SimpleNamespace(record=stored))
    origin = Origin("first", "embedded", recipe=frozen(RECIPE.values()))
    published = replace(stored, origin=origin, images=20, index=(), merged_from=())
    published = replace(published, digests=None, suite=SuiteId("suite-v1", "quick", "old"))
    published.write(tmp_path / "audit.json")
    found = again(tmp_path / "audit.json")
    assert [n.what for n in found.numbers] == ["clean", "own PGD-20", "worst case (quick)"]
    assert [n.says for n in found.numbers] == ["same"] * 3
    assert found.older_suite == "suite-v1"
    low = replace(published, worst_case=Accuracy.of(0.9, 300))
    low.write(tmp_path / "audit.json")
    assert "worst case (quick); how much" in verdict(again(tmp_path / "audit.json"))
    assert "suite-v1, whose attacks were others" in verdict(again(tmp_path / "audit.json"))


def test_a_stop_keeps_what_was_done(little_data: Dataset, tmp_path: Path) -> None:
    sg.train(RECIPE, tmp_path / "first", data=little_data)
    stop = threading.Event()
    stop.set()
    how, watch = Again(out=tmp_path / "again"), Watch(stop=stop)
    with pytest.raises(Interrupted, match="same command"):
        reproduce_record(tmp_path / "first" / RECORD, None, how, watch, little_data)


def written(record: Record, tmp_path: Path) -> Path:
    record.write(tmp_path / "record.json")
    return tmp_path / "record.json"


def test_a_network_of_the_demo_is_its_recipe_with_the_seed_and_gains_of_the_record() -> None:
    path = ROOT / "results" / "demo.json"
    record = DemoRecord.read(path)
    source = source_of(path, "control")
    assert source.recipe.options["gain"] == record.networks[1].factor
    assert (source.recipe.seed, source.recipe.epochs) == (record.settings.seed, record.settings.epochs)
    assert source.claims[0].published == record.networks[1].attacks["8/255"].clean
    assert source_of(path, "tgo").recipe.defenses == named("tgo").defenses


def test_a_network_of_a_sweep_knows_the_other_seeds_of_its_row(tmp_path: Path) -> None:
    cells = {f"tgo-{seed}": StudyRow("", "TGO", seed, audit=AUDIT) for seed in (0, 1)}
    settings = SweepSettings(8 / 255, (0, 1), images=20)
    path = written(SweepRecord("s", settings, {"TGO": frozen(RECIPE.values())}, cells), tmp_path)
    source = source_of(path, "tgo-1")
    assert source.recipe.seed == 1
    assert source.claims[0].others == (0.5,)
    assert source.budget == Budget("linf", 8 / 255)
    assert source_of(path, "TGO").recipe.seed == 0
    with pytest.raises(UserError, match="--cell names none; its networks: tgo-0; tgo-1"):
        source_of(path, None)


def test_a_cell_of_the_trainings_on_cifar_is_audited_on_the_last_validation_images(
    tmp_path: Path, little_data: Dataset
) -> None:
    record = CellRecord("c", "why?", 1.0, frozen(RECIPE.values()), audit=AUDIT, eps=8 / 255)
    source = source_of(written(record, tmp_path), None)
    assert source.extra == MORE
    assert len(source.pick(little_data)) == 20
    for lacking, message in (
        (replace(record, eps=None), "budget"),
        (replace(record, audit=None), "no audit"),
    ):
        with pytest.raises(UserError, match=message):
            source_of(written(lacking, tmp_path), None)


def test_rows_of_tables_and_reproductions_bring_their_columns(tmp_path: Path, little_data: Dataset) -> None:
    column = TableColumn("fgsm", "fgsm")
    cell, origin = TableCell("fgsm", 0.1, HALF), Origin("first", recipe=frozen(RECIPE.values()))
    row = TableRow("first", origin, HALF, "", "", False, (cell,))
    table = TableRecord("linf", (0.05, 0.1), (column,), 3, 50, machine(), (row,))
    source = source_of(written(table, tmp_path), None)
    assert [c.what for c in source.claims] == ["clean", "fgsm"]
    assert (source.seed, source.batch_size, source.budget) == (3, 50, Budget("linf", 0.1))
    networks = tuple(
        ReproductionRow("AT", "TGO", seed, frozen(RECIPE.values()), "", table=row) for seed in (0, 1)
    )
    record = ReproductionRecord("table1", "mini", 20, 0.1, (column,), 6, machine(), networks)
    source = source_of(written(record, tmp_path), "AT + TGO")
    assert (source.cell, source.claims[1].others) == ("AT + TGO 0", (0.5,))
    assert len(source.pick(little_data)) == 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embedded.json", "'study' holds no recipe"),
        ("bench.json", "'bench' holds no recipe"),
        ("cifar10-small/run.json", "leave out --cell"),
        ("demo.json", "has no 'x'; its networks: vanilla; control; nlif; tgo"),
    ],
)
def test_what_holds_no_recipe_is_refused_in_one_line(
    name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", str(ROOT / "results" / name), "--cell", "x"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_union_of_audits_is_refused(tmp_path: Path) -> None:
    stored = DemoRecord.read(ROOT / "results" / "demo.json").networks[0].attacks["8/255"]
    part = MergedPart(stored.suite, stored.worst_case)
    with pytest.raises(UserError, match="union of audits"):
        source_of(written(replace(stored, merged_from=(part,)), tmp_path), None)


def test_chance_is_what_images_explain_or_what_seeds_change() -> None:
    alone = allowance([0.5], [0.5], 100)
    assert alone == pytest.approx(1.96 * (2 * 0.25 / 100) ** 0.5, rel=1e-3)
    assert allowance([0.5], [0.5, 0.5], 100) == pytest.approx(alone), "never less than the images"
    spread = allowance([0.2, 0.3, 0.25], [0.22], 100)
    deviation = (0.005 / 2) ** 0.5  # of the three seeds of the record
    assert spread == pytest.approx(max(4.303 * deviation * 2**0.5, allowance([0.2425], [0.2425], 100)))
    assert allowance([0.2], [0.1, 0.5, 0.3], 10**6) == pytest.approx(4.303 * 0.2 * (4 / 3) ** 0.5)


def test_the_verb_says_that_a_record_agrees(
    little_data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from spikeguard.reproduce import again as module

    sg.train(RECIPE, tmp_path / "first", data=little_data)
    monkeypatch.setattr(module, "load_data", lambda *_: little_data)
    command = ["reproduce", str(tmp_path / "first" / RECORD), "--out", str(tmp_path / "a"), "--threads", "1"]
    assert main([*command, "--seeds", "2"]) == 0
    said = capsys.readouterr().out
    assert "Agrees: every number lies within what seeds change." in said
    path = tmp_path / "first" / RECORD
    replace(TrainingRecord.read(path), kept_accuracy=1.0, weights="other").write(path)
    assert main(command) == 1
    assert "Differs by more than" in capsys.readouterr().out
