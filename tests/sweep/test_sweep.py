"""A sweep over a TOML matrix: what the file says, one record that continues, a study found by its name."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import little_recipe
from narrow import as_a

from spikeguard.auditing import suite
from spikeguard.cli.main import main
from spikeguard.data.images import Dataset
from spikeguard.defenses import AT, TGO
from spikeguard.errors import Interrupted, UserError
from spikeguard.surrogates import Triangle
from spikeguard.sweep.matrix import Matrix, SweepSettings, merged, read_matrix
from spikeguard.sweep.run import RECORD_NAME, SweepRecord, sweep
from spikeguard.sweep.studies import study_main
from spikeguard.sweep.table import table
from spikeguard.training.recipes import recipe

TEXT = """
eps = "8/255"
seeds = 2
images = 50

[base]
recipe = "tgo"
epochs = 2

[axes]
"defenses.tgo.delta" = [0.4, 0.5]
"neuron.surrogate" = [{ triangle = { width = 1.0 } }, { atan = {} }]

[[rows]]
name = "TGO"

[[rows]]
name = "TGO + AT"
defenses.at = { eps = "16/255" }
"""


Write = Callable[[str], Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Write a matrix: ``written(text)`` is its path."""

    def write(text: str) -> Path:
        path = tmp_path / "deltas.toml"
        path.write_text(text)
        return path

    return write


def test_rows_and_axes_of_a_file_become_recipes(written: Write) -> None:
    matrix = read_matrix(written(TEXT))
    assert list(matrix.rows)[:2] == [
        "TGO, delta 0.4, surrogate triangle width 1.0",
        "TGO, delta 0.4, surrogate atan",
    ]
    assert len(matrix.rows) == 8
    chosen = matrix.rows["TGO + AT, delta 0.5, surrogate triangle width 1.0"]
    assert chosen.neuron.surrogate == Triangle(1.0)
    (at,) = (d for d in chosen.defenses if isinstance(d, AT))
    (tgo,) = (d for d in chosen.defenses if isinstance(d, TGO))
    assert (at.eps, tgo.delta, chosen.epochs) == (16 / 255, 0.5, 2)
    base = as_a(TGO, recipe("tgo").defenses[0])
    assert tgo.lambda_max == base.lambda_max, "the base stays where nothing changes it"
    cells = list(matrix.cells())
    assert [c.seed for c in cells] == [0] * 8 + [1] * 8
    assert {c.recipe.seed for c in cells} == {0, 1}
    assert len({c.name for c in cells}) == 16
    assert matrix.settings == SweepSettings(8 / 255, (0, 1), images=50)


def test_tables_merge_off_removes_one_and_a_surrogate_replaces_the_other() -> None:
    values = {"a": {"b": 1, "c": 2}, "surrogate": {"atan": {"slope": 2.0}}, "defenses": {"at": {}}}
    changes = {"a": {"b": 3}, "surrogate": {"triangle": {}}, "defenses": {"at": "off"}}
    assert merged(values, changes) == {"a": {"b": 3, "c": 2}, "surrogate": {"triangle": {}}, "defenses": {}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds = 1", "eps is missing"),
        ('eps = "8/255"\ncolor = 3', "unknown field 'color'"),
        ('eps = "8/255"\neffort = "endless"', "effort = 'endless' must be one of"),
        ("eps = 0.1\nseeds = 0", "at least 1"),
        ("eps = 0.1\n[base]\nepoch = 1", "unknown field 'epoch'"),
        ('eps = 0.1\n[base]\nrecipe = "mine"', "unknown recipe 'mine'"),
        ('eps = 0.1\n[axes]\n"epochs" = 3', "must be a list of values"),
        ("eps = 0.1\n[[rows]]\nepochs = 1", "needs a name"),
        ('eps = 0.1\n[[rows]]\nname = "a"\n[[rows]]\nname = "a"', "two rows have the name 'a'"),
        ("eps = ", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_line(
    written: Write, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(written(text))]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.fixture
def small_matrix(monkeypatch: pytest.MonkeyPatch, short_suite: None) -> Matrix:
    """Two rows of seconds."""
    base = little_recipe(epochs=1, options={"width": 2}, validation=0.1)
    monkeypatch.setitem(suite.SUITES, "quick", suite.SUITES["quick"][:4])
    rows = {"plain": base, "TGO": replace(base, defenses=(TGO(),))}
    return Matrix("small", rows, SweepSettings(8 / 255, images=20))


@pytest.mark.slow
def test_a_sweep_continues_where_it_stopped_and_runs_again_what_has_changed(
    small_matrix: Matrix, little_data: Dataset, tmp_path: Path
) -> None:
    stop = threading.Event()

    def progress(stage: str, done: int, total: int) -> None:
        if stage.startswith("2 of 2"):
            stop.set()

    with pytest.raises(Interrupted, match="same command"):
        sweep(small_matrix, tmp_path, progress=progress, stop=stop, data=little_data)
    half = SweepRecord.read(tmp_path / RECORD_NAME)
    assert [row.row for row in half.cells.values()] == ["plain"]
    assert table(half)[1][-1] == "not run"
    record = sweep(small_matrix, tmp_path, data=little_data)
    assert record == SweepRecord.read(tmp_path / RECORD_NAME)
    assert record.cells["plain-0"] == half.cells["plain-0"]
    assert [line[:2] for line in table(record)] == [["plain", "1"], ["TGO", "1"]]
    changed = {**small_matrix.rows, "TGO": replace(small_matrix.rows["TGO"], lr=1e6)}
    other = sweep(replace(small_matrix, rows=changed), tmp_path, data=little_data)
    assert other.cells["plain-0"] == half.cells["plain-0"]
    assert "lower lr" in table(other)[1][-1]


def test_images_that_are_not_there_are_refused_before_the_training(
    small_matrix: Matrix, little_data: Dataset, tmp_path: Path
) -> None:
    matrix = replace(small_matrix, settings=replace(small_matrix.settings, images=90, part="test"))
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        sweep(matrix, tmp_path, stop=stop, data=little_data)
    with pytest.raises(UserError, match="class"):
        sweep(replace(matrix, settings=replace(matrix.settings, images=5000)), tmp_path, data=little_data)


def test_a_study_is_found_in_the_current_folder_or_in_the_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert study_main("embedded").__module__ == "studies.embedded.study"
    monkeypatch.chdir(Path(__file__).parents[2])
    assert study_main("embedded").__module__ == "studies.embedded.study"
    for name in ("imagenet", "../embedded", ""):
        with pytest.raises(UserError, match="nor a study"):
            study_main(name)
