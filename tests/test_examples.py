"""Every public function and class has an example in its docstring, and the examples run."""

import doctest
import importlib
import inspect
import types
from pathlib import Path

import pytest
import torch
from conftest import awake

import spikeguard as sg
from spikeguard.auditing import controls, suite
from spikeguard.networks import build

NAMESPACES = ("adapters", "attacks", "auditing", "defenses", "gradients", "neurons", "surrogates", "training")


def public() -> dict[str, object]:
    """Name -> function or class, each once, under its shortest name."""
    found = {name: getattr(sg, name) for name in dir(sg)}
    for namespace in NAMESPACES:
        module = importlib.import_module(f"spikeguard.{namespace}")
        found |= {f"{namespace}.{name}": getattr(module, name) for name in module.__all__}
    once: dict[int, tuple[str, object]] = {}
    for name, value in found.items():
        if isinstance(value, (type, types.FunctionType)):
            once.setdefault(id(value), (name, value))
    return dict(once.values())


PUBLIC = public()
MISSING: set[str] = set()
"""Names whose docstring has no example yet."""


@pytest.fixture(autouse=True)
def short_audits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits of three attacks and short controls: an example shows a call, not a number."""
    monkeypatch.setitem(suite.SUITES, "quick", [m for m in suite.SUITES["quick"] if m.all])
    monkeypatch.setattr(controls, "LADDER", controls.LADDER[:1])
    monkeypatch.setattr(controls, "CURVE", (0.0, 1.0, 2.0))


def has_example(value: object) -> bool:
    return ">>> " in (inspect.getdoc(value) or "")


@pytest.fixture(scope="module")
def namespace() -> dict[str, object]:
    """What an example may use: sg, torch, a tiny network, six images and the classes it gives them."""
    net = awake(build("small", classes=10, in_shape=(1, 8, 8), timesteps=3, width=8))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 1, 8, 8, generator=generator)
    return {"sg": sg, "torch": torch, "net": net, "x": x, "y": net(x).argmax(1)}


def test_the_list_of_missing_examples_is_up_to_date() -> None:
    missing = {name for name, value in PUBLIC.items() if not has_example(value)}
    assert missing == MISSING, f"MISSING should be: {' '.join(sorted(missing))}"


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if has_example(value)])
def test_the_example_runs(
    name: str, namespace: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    value = PUBLIC[name]
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(verbose=False)
    (test,) = finder.find(value, name, module=inspect.getmodule(value), globs=dict(namespace))
    output: list[str] = []
    runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
    assert runner.tries > 0
