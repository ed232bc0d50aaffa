"""The pages on frameworks show the scripts of ``examples/`` as they are, and these run."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from spikeguard.auditing import controls, suite
from spikeguard.auditing.suite import FGSM
from spikeguard.data.sources import load_data
from spikeguard.records.schema import Controls, FullBudget, ZeroBudget

ROOT = Path(__file__).parents[2]
FRAMEWORKS = ("spikingjelly", "snntorch", "norse", "sinabs")
SCRIPTS = sorted(p.name for p in (ROOT / "examples").glob("*.py") if p.name.startswith(FRAMEWORKS))
"""Named by framework and topic: ``norse_audit.py``."""


def scripts(page: str) -> dict[str, str]:
    """File of ``examples/`` -> the code that the page shows as this file."""
    found = re.findall(r"`(examples/\w+\.py)`[^`]*```python\n(.*?)```", page, re.S)
    return dict(found)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_page_shows_its_scripts_as_they_are(name: str) -> None:
    shown = scripts((ROOT / "docs" / "frameworks" / f"{name}.md").read_text())
    assert set(shown) == {f"examples/{file}" for file in SCRIPTS if file.startswith(name)}
    assert f"examples/{name}_audit.py" in shown
    for file, code in shown.items():
        assert (ROOT / file).read_text() == code, f"{file} and its page differ"


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one attack instead of the suite and its controls, a tenth of the training."""
    pytest.importorskip(name.partition("_")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(suite.SUITES, "quick", (FGSM,))
    quiet = Controls(0, ZeroBudget(0.0, 0.0), FullBudget(0.0, 0.1, breakable=False), (), ())
    monkeypatch.setattr(controls, "run_controls", lambda task, effort: quiet)
    load_data("embedded")
    randperm = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n, **options: randperm(n, **options)[:50])
    runpy.run_path(str(ROOT / "examples" / name))
    assert capsys.readouterr().out
    assert "% nearer than 0.5" in Path("potentials.svg").read_text()
