"""The guide on the guard runs as it stands on its page."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "guard.md"


def test_every_block_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("spikingjelly")
    blocks = re.findall(r"```python[^\n]*\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 6
    monkeypatch.chdir(tmp_path)
    own = types.ModuleType("my_nets")
    monkeypatch.setitem(sys.modules, "my_nets", own)
    names: dict[str, object] = {"__name__": "my_nets"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
        vars(own).update(names)
    assert isinstance(names["net"], torch.nn.Module)
    assert (tmp_path / "runs" / "hard" / "hardening.json").exists()
