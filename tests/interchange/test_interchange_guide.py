"""The guide's examples, run from top to bottom as they stand there."""

import re
from pathlib import Path

import pytest
import torch

from spikeguard.interchange.conventions import CONVENTIONS
from spikeguard.interchange.state_import import LAYOUTS

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "interchange.md"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("nir", "snntorch.import_nir", "sinabs.nir"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) > 5
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert "not VGG-11 of SNN-RAT" in capsys.readouterr().out


def test_the_tables_name_every_convention_and_layout() -> None:
    text = PAGE.read_text()
    header = next(line for line in text.splitlines() if line.startswith("| | `"))
    assert re.findall(r"`(\w+)`", header) == list(CONVENTIONS)
    assert re.findall(r"^\| `([\w-]+/[\w-]+)` \|", text, re.M) == list(LAYOUTS)
