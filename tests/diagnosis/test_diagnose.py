"""The whole diagnosis: its record, its page, its verb."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.cli.main import main
from spikeguard.diagnosis import diagnose as diagnosing
from spikeguard.networks.classifier import Classifier
from spikeguard.records.diagnosis import DiagnosisRecord
from spikeguard.records.read import read_record
from spikeguard.report.diagnosis_page import findings, write_page

Pair = tuple[Tensor, Tensor]
THREAT = sg.Linf(0.1)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosing, "STEPS", 4)
    monkeypatch.setattr(diagnosing, "SHARES", (0.1, 0.5))
    monkeypatch.setattr(diagnosing, "DRAWS", 2)


def test_the_record_holds_what_was_measured_and_can_be_read_again(
    tiny: Classifier, pair: Pair, tmp_path: Path
) -> None:
    found = sg.diagnose(tiny, *pair, THREAT, sigma=0.2).record
    assert found.clean.value == 1.0
    assert found.attacked.value < 1.0
    assert list(found.layers) == [name for name, _ in tiny.named_modules() if name.endswith("fire")]
    for row in found.layers.values():
        assert row.noise.agrees
        assert len(row.steps) == tiny.timesteps
        assert [near.delta for near in row.near] == [0.1, 0.2, 0.5]
        assert row.near[0].absolute <= row.near[1].absolute <= row.near[2].absolute
    found.write(tmp_path / "d.json")
    assert read_record(tmp_path / "d.json") == found


def test_batches_do_not_change_it(tiny: Classifier, pair: Pair) -> None:
    whole, parts = (sg.diagnose(tiny, *pair, THREAT, batch_size=n).record for n in (7, 3))
    assert whole.held == parts.held
    assert whole.attacked == parts.attacked
    assert whole.sampled.patterns == parts.sampled.patterns
    for name, row in whole.layers.items():
        assert row.attack.flipped == parts.layers[name].attack.flipped


def test_networks_of_other_libraries_are_diagnosed(pair: Pair) -> None:
    snntorch = pytest.importorskip("snntorch")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 20), nn.Linear(20, 10)
            self.fire = snntorch.Leaky(beta=0.5, threshold=0.3)

        def forward(self, x: Tensor) -> Tensor:
            held, total = self.fire.init_leaky(), torch.zeros(len(x), 10)
            for _ in range(3):
                spikes, held = self.fire(self.first(x.flatten(1)), held)
                total = total + self.last(spikes)
            return total

    net = Net()
    x = pair[0]
    found = sg.diagnose(net, x, net(x).argmax(1), sg.Linf(0.3)).record
    (row,) = found.layers.values()
    assert len(row.steps) == 3
    assert row.gradient is None, "a layer that is stepped from outside has no currents"
    assert row.noise.agrees
    assert found.energy.accumulates > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sigma": 0.0}, "sigma = 0.0 must be above 0"),
        ({"deltas": ()}, "must be numbers above 0"),
        ({"batch_size": 0}, "batch_size = 0 must be 1 or more"),
        ({"model": nn.Flatten()}, "no neurons that sg.tap knows"),
    ],
)
def test_bad_input_is_one_line(tiny: Classifier, pair: Pair, change: dict[str, object], says: str) -> None:
    given: dict[str, object] = {"model": tiny, "x": pair[0], "y": pair[1], "threat": THREAT, **change}
    with pytest.raises(sg.UserError, match=re.escape(says)):
        sg.diagnose(**given)  # type: ignore[arg-type]


def test_the_page_shows_two_networks(tiny: Classifier, pair: Pair, tmp_path: Path) -> None:
    record = sg.diagnose(tiny, *pair, THREAT).record
    text = write_page([record, record], tmp_path / "page.html").read_text()
    assert text.count("<svg") == 2
    assert all(line.replace("&", "&amp;") in text for line in findings(record) if "<" not in line)
    assert not re.search(r'(src|href)="(?!#)', text), "nothing is loaded from elsewhere"


def test_few_broken_images_are_no_ground_for_a_sentence(tiny: Classifier, pair: Pair) -> None:
    record = sg.diagnose(tiny, *pair, sg.Linf(1e-6)).record
    held_says, _, predictors_say, _ = findings(record)
    assert held_says.startswith("The attack breaks too few images")
    assert predictors_say.startswith("Too few images break")


def test_the_verb_writes_record_and_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net_to_diagnose.py").write_text(
        "import torch\nfrom torch import nn\nimport spikeguard as sg\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.first, self.fire = nn.Linear(784, 9), sg.LIF(threshold=0.2)\n"
        "        self.last = nn.Linear(9, 10)\n"
        "    def forward(self, x):\n"
        "        return self.last(self.fire(self.first(x.flatten(1))[None], timesteps=2).mean(0))\n"
        "def build() -> nn.Module:\n    return Net().eval()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = [
        "diagnose",
        "net_to_diagnose:build",
        "net_to_diagnose:build",
        "--data",
        "embedded",
        "--images",
        "20",
        "--out",
        "out",
    ]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "next: open out/diagnosis.html" in said
    first, other = (DiagnosisRecord.read(tmp_path / "out" / f"{n}diagnosis.json") for n in ("", "other-"))
    assert first.layers == other.layers
    assert main([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["records"]) == 2
    (tmp_path / "out" / "diagnosis.json").write_text('{"kind": "audit"}')
    assert main(arguments) == 2
    assert "would be lost" in capsys.readouterr().err
