"""The guide's example of own neurons runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch

import spikeguard as sg

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "extend.md"


def test_the_example_of_own_neurons_runs(capsys: pytest.CaptureFixture[str]) -> None:
    section = GUIDE.read_text().partition("## Neurons of your own")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    given: dict[str, object] = {}
    exec(code, given)
    kind, net = given["Resonator"], given["net"]
    assert isinstance(net, torch.nn.Sequential)
    assert isinstance(kind, type)
    assert capsys.readouterr().out == "torch.Size([5, 3, 4])\n"
    grad = net[0].weight.grad
    assert isinstance(grad, torch.Tensor)
    assert float(grad.abs().sum()) > 0
    with sg.tap(net) as tapped:
        net(torch.ones(2, 8))
        sg.adapters.reset(net)
        net(torch.ones(2, 8))
    assert list(tapped.potentials) == ["1", "1#1"]
    assert torch.equal(tapped.potentials["1"], tapped.potentials["1#1"])
    sg.adapters.remove(kind)
    with pytest.raises(sg.UserError, match="no neurons that it knows"):
        sg.tap(net)
