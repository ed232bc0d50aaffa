"""The user's own code as a target: whatever its module or its function does ends in one line."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from spikeguard.cli.target import find
from spikeguard.errors import UserError

CODE = """
import sys, torch
from torch import nn

class Net(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10]

net = Net().train()
number = 3
def exits(): sys.exit(4)
def raises(): raise RuntimeError("no way\\nmore")
def imports(): import nothing_there
def none(): pass
def pair(): return net, None
def needs(a): return net
def needs_too(*, a): return net
async def waits(): return net
def gives_class(): return Net
def meta(): return nn.Linear(2, 2, device="meta")
def lazy(): return nn.LazyLinear(2)
def runs(*args, **kwargs): return net
"""
MODULES = {
    "script": b"import argparse\nargparse.ArgumentParser(prog='s').parse_args(['--no'])",
    "wrong": b"def f(:",
    "fails": b"raise ValueError('at the top')",
    "binary": b"x = '\xe9'",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with modules of a user's."""
    (tmp_path / "own_code.py").write_text(CODE)
    for name, text in MODULES.items():
        (tmp_path / f"own_{name}.py").write_bytes(text)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.startswith("own_")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_code:exits", "own_code:exits fails (SystemExit: 4)"),
        ("own_code:raises", "own_code:raises fails (RuntimeError: no way)"),
        ("own_code:imports", "fails (ModuleNotFoundError: No module named 'nothing_there')"),
        ("own_code:none", "returned a NoneType"),
        ("own_code:pair", "returned a tuple"),
        ("own_code:needs", "needs arguments"),
        ("own_code:needs_too", "needs arguments"),
        ("own_code:waits", "returned a coroutine"),
        ("own_code:gives_class", "is a class; pass an instance of it"),
        ("own_code:meta", "meta device"),
        ("own_code:lazy", "lazy layers"),
        ("own_code:number", "own_code:number is a int; it must be a function"),
        ("own_code:run", "own_code has no function 'run'; did you mean 'runs'?"),
        ("own_script:f", "cannot import 'own_script' (SystemExit: 2)"),
        ("own_wrong:f", "cannot import 'own_wrong' (SyntaxError: "),
        ("own_fails:f", "cannot import 'own_fails' (ValueError: at the top)"),
        ("own_binary:f", "cannot import 'own_binary' (SyntaxError: "),
        ("own_nothing:f", "cannot import 'own_nothing' (ModuleNotFoundError"),
        (":f", "':f' must be package.module:function"),
        ("..own_code:f", "cannot import '..own_code'"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine", "ignore:Lazy modules")
def test_code_that_gives_no_network_is_one_line(name: str, said: str, folder: Path) -> None:
    with pytest.raises(UserError) as error:
        find(name, 10, "embedded", None, "cpu")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["own_code:runs", "own_code:net", "own_code:Net"])
def test_a_function_a_class_or_the_network_itself_are_taken_in_eval_mode(name: str, folder: Path) -> None:
    model = find(name, 10, "embedded", None, "cpu").model
    assert isinstance(model, nn.Module)
    assert not model.training
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
