"""Every neuron class of every framework under a tap, and potentials against the frameworks' own equations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from neuron_classes import FRAMEWORKS, Case, cases, exported, plain, rows_of
from torch import Tensor, nn

import spikeguard as sg

Raw = Any
OLD = Path(sys.prefix) / "spikingjelly-0.0.0.0.14"
LABEL = "SpikingJelly 0.0.0.0.14"
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "adapters.md"
PACKAGES = {name: path.partition(".")[0] for name, (path, _) in FRAMEWORKS.items()}


def each_case() -> list[Raw]:
    """All classes of the frameworks that are installed."""
    installed = [name for name, package in PACKAGES.items() if find_spec(package)]
    return [pytest.param(name, case, id=f"{name}-{case.name}") for name in installed for case in cases(name)]


@pytest.mark.parametrize(("framework", "case"), each_case())
def test_a_neuron_class_works_under_a_tap_or_is_refused_by_name(framework: str, case: Case) -> None:
    rows = rows_of(framework, case)
    for row in rows:
        if case.build is not None and "in eval mode" not in row.refused:
            assert row.refused == "", row
            assert row.spikes
        if case.build is None and row.spikes:
            assert len(row.refused) > 20, "no reason"
        assert row.line(framework) in table(), "run tools/adapters_page.py"


def table() -> list[str]:
    """The lines of the page that a run writes."""
    return [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_exported_class_is_a_case_and_in_the_page(framework: str) -> None:
    pytest.importorskip(PACKAGES[framework])
    names = {case.name for case in cases(framework)}
    assert exported(framework) == names
    assert {line.split(" | ")[1] for line in table() if line.startswith(f"| {framework} |")} == names


def loop(
    x: Tensor, v: Tensor, step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Potentials and spikes of ``step(v, current) -> (u, spikes, v)``."""
    rows = []
    for current in x:
        u, s, v = step(v, current)
        rows.append((u, s))
    return torch.stack([u for u, _ in rows]), torch.stack([s for _, s in rows])


def third(fires: Tensor) -> None:
    """About a third of the neurons fire: neither path of the reset is idle."""
    assert 0.2 < float((fires != 0).float().mean()) < 0.5


@pytest.mark.parametrize("v_reset", [0.0, -0.25, None])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_spikingjelly_potentials_are_those_of_its_equations(
    v_reset: float | None, decay_input: bool, mode: str
) -> None:
    """H = V + (X - (V - V_reset)) / tau, or V - (V - V_reset) / tau + X; hard and soft reset."""
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    module = neuron.LIFNode(2.5, decay_input, 1.0, v_reset, step_mode=mode).eval()
    x, rest = torch.rand(5, 4, 30) * (3.3 if decay_input else 1.4), v_reset or 0.0

    def step(v: Tensor, current: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = v + (current - (v - rest)) / 2.5 if decay_input else v - (v - rest) / 2.5 + current
        s = (h - 1.0 >= 0).float()
        return h - 1.0, s, h - s * 1.0 if v_reset is None else s * v_reset + (1.0 - s) * h

    u, spikes = loop(x, torch.full((4, 30), rest), step)
    compare(module, x, u, spikes, lambda m, x: plain(m, x, mode))


@pytest.mark.parametrize("mechanism", ["subtract", "zero", "none"])
@pytest.mark.parametrize("delay", [True, False])
def test_snntorch_potentials_are_those_of_its_equations(mechanism: str, delay: bool) -> None:
    """mem = beta mem + input - reset threshold, or of mem (1 - reset); the reset is a step late, or not."""
    snn = pytest.importorskip("snntorch")
    module = snn.Leaky(0.8, init_hidden=True, reset_mechanism=mechanism, reset_delay=delay)
    x, beta = torch.rand(5, 4, 30) * (0.7 if mechanism == "none" else 1.3), torch.tensor(0.8)

    def step(mem: Tensor, current: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reset = (mem - 1.0 > 0).float()
        if mechanism == "subtract":
            mem = beta * mem + current - reset * 1.0
        else:
            mem = beta * (mem if mechanism == "none" else (1 - reset) * mem) + current
        u, s = mem - 1.0, (mem - 1.0 > 0).float()
        if not delay and mechanism != "none":
            mem = mem - (s - reset) * (1.0 if mechanism == "subtract" else mem)
        return u, s, mem

    compare(module, x, *loop(x, torch.zeros(4, 30), step), lambda m, x: plain(m, x, "s"))


@pytest.mark.parametrize("name", ["LIF", "LIFCell", "IAF", "LIFBoxCell"])
def test_norse_potentials_are_those_of_its_equations(name: str) -> None:
    """v += dt tau_mem_inv (v_leak - v + i); i is the input filtered by tau_syn_inv; v_reset after a spike."""
    nt = pytest.importorskip("norse.torch")
    fast = {"tau_mem_inv": torch.tensor(400.0)}
    if name.startswith("LIF") and "Box" not in name:
        p = nt.LIFParameters(tau_syn_inv=torch.tensor(500.0), v_reset=torch.tensor(0.1), **fast)
    else:
        p = nt.IAFParameters() if name == "IAF" else nt.LIFBoxParameters(**fast)
    module, x = getattr(nt, name)(p=p), torch.rand(5, 4, 30) * {"IAF": 1.0, "LIFBoxCell": 3.5}.get(name, 2.0)
    i = torch.zeros(4, 30)

    def step(v: Tensor, current: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal i
        if name == "IAF":
            v = v + current
        elif name == "LIFBoxCell":
            v = v + 0.001 * p.tau_mem_inv * (p.v_leak - v + current)
        else:
            i = i + current
            v = v + 0.001 * p.tau_mem_inv * (p.v_leak - v + i)
            i = i + -0.001 * p.tau_syn_inv * i
        z = (v - p.v_th > 0).float()
        return v - p.v_th, z, (1 - z) * v + z * p.v_reset

    def run(module: nn.Module, x: Tensor) -> Tensor:
        if "Cell" not in name:
            out: Tensor = module(x)[0]
            return out
        state, spikes = None, []
        for current in x:
            z, state = module(current, state)
            spikes.append(z)
        return torch.stack(spikes)

    compare(module, x, *loop(x, torch.zeros(4, 30), step), run)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("spike", ["SingleSpike", "MultiSpike"])
@pytest.mark.parametrize("kind", ["LIF", "LIF with synapse", "IAF", "ALIF"])
def test_sinabs_potentials_are_those_of_its_equations(reset: str, spike: str, kind: str) -> None:
    """v = alpha v + (1 - alpha) i, i = alpha_syn (i + x); one spike or floor(v / threshold) of them."""
    sl, sa = pytest.importorskip("sinabs.layers"), pytest.importorskip("sinabs.activation")
    rule = {"subtract": sa.MembraneSubtract(), "zero": sa.MembraneReset()}[reset]
    name, _, synapse = kind.partition(" ")
    taus = {"tau_mem": 3.0} if name != "IAF" else {}
    taus |= {"tau_adapt": 4.0} if name == "ALIF" else {"tau_syn": 2.0} if synapse else {}
    module = getattr(sl, name)(**taus, spike_fn=getattr(sa, spike), reset_fn=rule)
    x = torch.rand(5, 4, 30) * (0.9 if name == "IAF" else 3.0 if synapse else 4.2)
    alpha = torch.tensor(1.0) if name == "IAF" else torch.exp(-1.0 / torch.tensor(3.0))
    i, b, syn = torch.zeros(4, 30), torch.zeros(4, 30), torch.exp(-1.0 / torch.tensor(2.0))

    def step(v: Tensor, current: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal i, b
        if synapse:
            i = current = syn * (i + current)
        v = alpha * v + (current if name == "IAF" else (1 - alpha) * current)
        theta = 1.0 + 1.8 * b if name == "ALIF" else torch.tensor(1.0)
        one = (v - theta >= 0).float()
        s = one if spike == "SingleSpike" else (v > 0) * torch.div(v, theta, rounding_mode="trunc").float()
        if name == "ALIF":
            decay = torch.exp(-1 / torch.tensor(4.0))
            b = decay * b + (1 - decay) * s
        return v - theta, s, v - s * theta if reset == "subtract" else v * (s == 0).float() + 0.0

    compare(module, x, *loop(x, torch.zeros(4, 30), step), lambda m, x: m(x.transpose(0, 1)).transpose(0, 1))


def compare(
    module: nn.Module, x: Tensor, u: Tensor, spikes: Tensor, run: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    """A tap reads exactly these potentials, twice, and the module gives exactly these spikes."""
    with sg.tap(module) as tapped:
        first = run(module, x)
        sg.adapters.reset(module)
        again = run(module, x)
    third(spikes)
    assert torch.equal(first, spikes)
    assert torch.equal(again, spikes)
    assert list(tapped.potentials) == ["", "#1"]
    assert torch.equal(tapped.potentials[""], u)
    assert torch.equal(tapped.potentials["#1"], u)


@pytest.mark.skipif(
    not OLD.is_dir(), reason="spikingjelly 0.0.0.0.14 is not installed (dev.py test installs it)"
)
def test_spikingjelly_0_0_0_0_14_works_under_a_tap() -> None:
    here = Path(__file__).parent
    path = os.pathsep.join([str(OLD), str(here), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, str(here / "neuron_classes.py"), "SpikingJelly", LABEL],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = json.loads(done.stdout)
    assert lines == [line for line in table() if line.startswith(f"| {LABEL} |")], (
        "run tools/adapters_page.py"
    )
    working = {line.split(" | ")[1] for line in lines if "| works |" in line}
    assert working >= {"IFNode", "LIFNode", "ParametricLIFNode", "QIFNode", "KLIFNode"}
