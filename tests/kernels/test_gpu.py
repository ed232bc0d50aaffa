"""On a GPU.

The same spikes and draws, every defense trains, a run goes on to the same bits, an audit says what it says on
the CPU.
"""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import little_recipe
from narrow import present
from outputs import Kernel, Outcome, Reset, Site, assert_same
from torch import Tensor

import spikeguard as sg
from spikeguard.auditing.suite import Effort
from spikeguard.auditing.verify import verify
from spikeguard.cli.main import main
from spikeguard.data.images import Dataset
from spikeguard.errors import Interrupted
from spikeguard.kernels import compiled, compiler, equation
from spikeguard.kernels.mode import Band, LayerOutput, Mode
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import seed_noise
from spikeguard.random import draws
from spikeguard.records.files import read_json
from spikeguard.records.schema import AuditRecord
from spikeguard.surrogates import Atan
from spikeguard.sweep.cells import Context
from spikeguard.threat import Threat
from spikeguard.training.trainer import Report
from studies.embedded import matrix, stages
from studies.embedded.matrix import StudySize

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
CELLS = {f"{c.group} {c.row}": c.recipe for c in matrix.cells(StudySize(seeds=1))}
THREAT = sg.Linf(0.03)


def outcome(
    kernel: Kernel, device: str, mode: Mode, current: Tensor, noise: Tensor | None, **how: bool
) -> Outcome:
    """Outputs and gradients of one random loss, all of them on the CPU."""
    leaf = current.to(device).requires_grad_()
    decay, threshold = (
        torch.tensor(v, dtype=current.dtype, device=device, requires_grad=True) for v in (0.6, 0.9)
    )
    got = kernel(leaf, decay, threshold, mode, None if noise is None else noise.to(device), None, **how)
    weight = torch.randn(
        got.spikes.shape, generator=torch.Generator().manual_seed(5), dtype=current.dtype
    ).to(device)
    loss = (
        (got.spikes * weight).sum()
        + 0.3 * (present(got.u) * weight.flip(0)).sum()
        + 7.0 * present(got.penalty)
    )
    gradients = torch.autograd.grad(loss, (leaf, decay, threshold))
    held = LayerOutput(
        got.spikes.detach().cpu(), present(got.u).detach().cpu(), present(got.penalty).detach().cpu()
    )
    return held, [g.cpu() for g in gradients]


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("reset", "detach", "site"),
    [("hard", False, "compare"), ("soft", True, "membrane"), ("hard", True, "band")],
)
@pytest.mark.parametrize("noisy", [False, True])
def test_the_compiled_neuron_equals_the_readable_one_on_the_cpu(
    reset: Reset, detach: bool, site: Site, noisy: bool
) -> None:
    assert compiler.verdict("cuda")[0], compiler.verdict("cuda")[1]
    mode = Mode(4, Atan(2.0), reset, detach, 0.3, site, band=Band(0.5), noise_band=0.4)
    current = torch.randn(4, 3, 70, dtype=torch.float64)
    noise = 0.2 * torch.randn(4, 3, 70, dtype=torch.float64) if noisy else None
    ours = outcome(compiled.integrate, "cuda", mode, current, noise, compiled=True)
    theirs = outcome(equation.integrate, "cpu", mode, current, noise)
    torch.testing.assert_close(
        present(ours[0].u), present(theirs[0].u), rtol=0, atol=1e-14
    )  # a GPU fuses a product with its sum
    assert_same((ours[0]._replace(u=theirs[0].u), ours[1]), theirs, 1e-12)


@pytest.mark.compiled
@pytest.mark.parametrize("count", [7, 3000])
def test_draws_are_those_of_the_cpu(count: int) -> None:
    numbers = torch.arange(40) * 977
    keys = draws.step_keys(5, numbers, 3)
    assert torch.equal(draws.step_keys(5, numbers.cuda(), 3).cpu(), keys)
    drawn = draws.normal(keys.cuda(), count, 3)
    torch.testing.assert_close(
        drawn.cpu(), draws.normal(keys, count, 3), rtol=0, atol=1e-4
    )  # a GPU fuses a product with its sum
    assert torch.equal(draws.normal(keys[5:9].cuda(), count, 3), drawn[:, 5:9])
    assert torch.equal(draws.uniform(5, numbers.cuda(), count).cpu(), draws.uniform(5, numbers, count))


@pytest.mark.parametrize("name", CELLS)
def test_every_network_of_the_study_trains_and_moves_to_the_cpu(
    little_data: Dataset, tmp_path: Path, name: str
) -> None:
    recipe = replace(CELLS[name], epochs=1, options={"width": 3}, batch_size=50, validation=0.2)
    done = sg.train(recipe, tmp_path / "run", device="cuda", data=little_data)
    assert next(done.net.parameters()).is_cuda
    figures = [v for row in done.record.epochs for v in vars(row).values() if isinstance(v, float)]
    assert all(v == v for v in figures), "NaN"
    there, here = done.net, sg.load(tmp_path / "run")
    x = little_data.test.pixels()
    with torch.no_grad():
        for net in (there, here):
            seed_noise(net, 3)
        a, b = there(x.cuda()).cpu(), here(x)
    assert float((a.argmax(1) == b.argmax(1)).float().mean()) >= 0.9
    assert float((a - b).abs().median()) < 1e-3


@pytest.mark.parametrize("name", ["AT TGO", "regimes RAT + EMA, crafted by lot", "AT HoSNN"])
def test_a_stopped_training_goes_on_to_the_same_bits(little_data: Dataset, tmp_path: Path, name: str) -> None:
    recipe = replace(CELLS[name], epochs=2, options={"width": 3}, batch_size=50)
    whole = sg.train(recipe, tmp_path / "whole", device="cuda", data=little_data)
    stop = threading.Event()

    def halfway(report: Report) -> None:
        if report.step == 5:
            stop.set()

    with pytest.raises(Interrupted):
        sg.train(recipe, tmp_path / "half", device="cuda", data=little_data, progress=halfway, stop=stop)
    again = sg.train(recipe, tmp_path / "half", True, device="cuda", data=little_data)
    for key, value in whole.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[key]), key


@pytest.fixture(scope="module")
def trained(little_data: Dataset) -> dict[str, Classifier]:
    """A plain and a noisy network."""
    made = little_recipe(options={"width": 6}, epochs=6, validation=0.0, augment=False)
    noisy = replace(made, defenses=(sg.TGO(sigma=0.15, noise_at_eval=True),))
    return {
        name: sg.train(recipe, device="cuda", data=little_data).net
        for name, recipe in (("plain", made), ("noisy", noisy))
    }


@pytest.mark.parametrize("name", ["plain", "noisy"])
@pytest.mark.parametrize("effort", ["quick", "full"])
def test_an_audit_says_what_it_says_on_the_cpu(
    little_data: Dataset, trained: dict[str, Classifier], tmp_path: Path, name: str, effort: Effort
) -> None:
    net, count = trained[name], 60 if effort == "quick" else 20
    x, y = little_data.test.pixels()[:count], little_data.test.y[:count]
    there = sg.audit(net.cuda(), x.cuda(), y.cuda(), THREAT, effort=effort, out=tmp_path / "there")
    assert not there.record.errors
    assert there.record.random_model == (name == "noisy")
    here = sg.audit(net.cpu(), x, y, THREAT, effort="quick")
    assert abs(there.clean_accuracy - here.clean_accuracy) <= 0.02
    assert there.robust_accuracy <= here.robust_accuracy + 0.05
    record = AuditRecord.read(tmp_path / "there" / "audit.json")
    assert not verify(record, tmp_path / "there", net, x, y).wrong


@pytest.mark.parametrize("norm", [sg.L2(0.5), sg.L1(4.0)])
def test_other_norms_run(little_data: Dataset, trained: dict[str, Classifier], norm: Threat) -> None:
    x, y = little_data.test.pixels()[:20].cuda(), little_data.test.y[:20].cuda()
    done = sg.audit(trained["plain"].cuda(), x, y, norm, effort="full")
    assert not done.record.errors


def test_the_study_trains_and_judges_on_the_same_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [c for c in matrix.cells(StudySize(1, 1, 20, 20)) if c.name in ("bptt-none-0", "at-tgo-0")]
    monkeypatch.setattr(matrix, "cells", lambda *a: iter(chosen))
    context = Context(tmp_path, sg.load_data("embedded"), "cuda")
    record = stages.run(StudySize(1, 1, 20, 20), context, finish=False)
    assert {present(row.machine).device for row in record.cells.values()} == {torch.cuda.get_device_name(0)}


@pytest.mark.compiled
def test_demo_and_bench_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", "demo", "--images", "50", "--epochs", "1"]) == 0
    assert main(["bench", "--quick", "--rounds", "1", "--out", "bench"]) == 0
    assert read_json(tmp_path / "bench" / "bench.json")["machine"]["device"] == torch.cuda.get_device_name(0)
