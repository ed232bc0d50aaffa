"""Networks that come with the package: weights, records, cards, page."""

from pathlib import Path

import pytest
import torch

import spikeguard as sg
from spikeguard import zoo
from spikeguard.auditing.record import weights
from spikeguard.cli.main import main
from spikeguard.records.schema import AuditRecord
from spikeguard.records.training import TrainingRecord

ROOT = Path(__file__).parents[2]
NAMES = tuple(zoo.entries())


@pytest.mark.parametrize("name", NAMES)
def test_its_records_are_about_it(name: str) -> None:
    net, folder = sg.load(name), zoo.folder(name)
    training, audit = TrainingRecord.read(folder / zoo.TRAINING), AuditRecord.read(folder / zoo.AUDIT)
    assert not audit.errors
    assert audit.suite.effort == "standard"
    assert audit.digests is not None
    assert audit.digests.model == weights(net)
    assert audit.origin.recipe == training.recipe
    assert sum(p.numel() for p in net.parameters()) == training.parameters
    assert audit.witnesses is not None
    assert (folder / audit.witnesses.file).is_file()
    assert (folder / zoo.WEIGHTS).stat().st_size <= 3 * 2**20


def test_the_most_robust_one_breaks_where_its_record_says() -> None:
    """A single attack breaks no image that the audit's union leaves, up to the order of the classes."""
    record = AuditRecord.read(zoo.folder("embedded-robust") / zoo.AUDIT)
    test = sg.load_data("embedded").test.balanced(record.images)
    x, y = test.pixels()[:40], test.y[:40]
    found = sg.pgd(sg.load("embedded-robust"), x, y, sg.Linf(8 / 255), steps=5, restarts=1)
    right = torch.tensor([float(r) for r in record.right])[:40]
    assert not (found.broken & (right == 1)).any()


def test_cards_and_page_are_those_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import zoo_page as tool

    assert tool.PAGE.read_text() == tool.page()
    for name, entry in zoo.entries().items():
        assert zoo.card(name) == tool.card(name, entry.about, *tool.records(name))


def test_damaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    (tmp_path / NAMES[0]).mkdir()
    (tmp_path / NAMES[0] / zoo.WEIGHTS).write_bytes(b"other")
    with pytest.raises(sg.UserError, match="is damaged: install spikeguard again"):
        sg.load(NAMES[0])
    with pytest.raises(sg.UserError, match=r"unknown network of the zoo 'embeded'.*did you mean 'embedded"):
        zoo.folder("embeded")


def test_the_verb_lists_them_and_shows_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in NAMES)
    assert main(["zoo", NAMES[0]]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"# {NAMES[0]}\n")
    assert f"spikeguard audit {NAMES[0]}" in said
    assert main(["zoo", "nothing"]) == 2


def test_the_command_line_takes_them_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["attack", NAMES[0], "--attack", "fgsm", "--images", "20"]) == 0
    assert (tmp_path / "audits" / NAMES[0] / "attacks").is_dir()
    capsys.readouterr()
