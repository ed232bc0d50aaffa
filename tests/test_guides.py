"""The code in a guide runs as it stands there."""

import re
from pathlib import Path

import pytest

import spikeguard as sg
from spikeguard.training.register import REGISTRIES

GUIDES = Path(__file__).parents[1] / "docs" / "guides"


def test_things_of_ones_own_are_registered_trained_attacked_and_refused_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (GUIDES / "extend.md").read_text().partition("## Inside the package")[0]
    parts = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    Path("mine.py").write_text("\n".join(parts))  # with source, as fields are explained from it
    monkeypatch.syspath_prepend(tmp_path)
    try:
        import mine  # type: ignore[import-not-found]

        assert capsys.readouterr().out.endswith("of 20 broken\n")
        assert mine.run.record.plugins["defense shrink"] == "module mine"
        with pytest.raises(sg.UserError, match="there is a data set 'stripes' of module mine"):
            sg.register(sg.load_data("embedded"), "stripes")
    finally:
        for registry in REGISTRIES:
            registry.added.clear()
