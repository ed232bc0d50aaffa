"""The bench: what is compared is the same network and the same work; the record says what was found."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from narrow import present

from spikeguard.bench import growth, memory, parts, peers, run, tasks, timing
from spikeguard.bench.floor import Floor
from spikeguard.cli.main import main
from spikeguard.data.images import Dataset
from spikeguard.errors import UserError
from spikeguard.records.bench import BenchRecord, BenchSettings, Growth, GrowthCurve, LargeCase, Subject
from spikeguard.records.files import read_json
from spikeguard.report.bench_picture import picture
from spikeguard.runtime.machine import machine
from spikeguard.training.loop import train

CPU = torch.device("cpu")
TINY = {
    "small": Subject("small", "small", 8, {"width": 4, "depth": 2}, 3, (3, 16, 16)),
    "vgg11": Subject("vgg11", "vgg11", 8, {"hidden": (16, 12)}, 3, (3, 16, 16)),
    "wrn16": Subject("wrn16", "wrn16", 8, {"widen": 1}, 3, (3, 16, 16)),
}


def stand_in() -> peers.Framework:
    """A framework of our own, written from the equation.

    It needs no installation, so that twins are tested everywhere.
    """

    class Fire(torch.nn.Module):
        def forward(self, current: torch.Tensor) -> torch.Tensor:
            v, spikes = torch.zeros_like(current[0]), []
            for x in current:
                h = 0.5 * v + x
                s = (h >= 1.0).to(h.dtype)
                v = h * (1 - s)
                spikes.append(s)
            return torch.stack(spikes)

    class Fold(torch.nn.Module):
        def __init__(self, layer: torch.nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            return logits

    def over_time(body: torch.nn.Module, x: torch.Tensor, timesteps: int) -> torch.Tensor:
        found: torch.Tensor = body(x.unsqueeze(0).repeat(timesteps, 1, 1, 1, 1)).mean(0)
        return found

    return peers.Framework("stand-in", Fold, Fire, over_time)


@pytest.mark.parametrize("name", TINY)
def test_a_twin_is_the_same_network(name: str) -> None:
    net = tasks.network_of(TINY[name], CPU)
    x, _ = tasks.batch_of(TINY[name], CPU)
    agreement = run.agreement(net, x, {"stand-in": stand_in()})["stand-in"]
    assert agreement.same_classes == 1.0
    assert agreement.classes_used >= 3, "all images in one class would agree with anything"
    with torch.no_grad():
        torch.testing.assert_close(tasks.theirs(net, stand_in(), None)(x), net(x), rtol=1e-3, atol=1e-3)


@pytest.mark.oracle
@pytest.mark.parametrize("name", TINY)
def test_installed_frameworks_give_the_same_network(name: str) -> None:
    if not peers.installed():
        pytest.skip("no framework to compare with is installed")
    net = tasks.network_of(TINY[name], CPU)
    found = run.agreement(
        net, tasks.batch_of(TINY[name], CPU)[0], {n: make() for n, make in peers.installed().items()}
    )
    assert all(t.same_classes >= run.SAME_CLASSES for t in found.values())


def test_another_network_is_refused_before_anything_is_timed() -> None:
    net = tasks.network_of(TINY["small"], CPU)
    other = replace(
        stand_in(),
        run=lambda body, x, timesteps: torch.nn.functional.one_hot(torch.full((len(x),), 9), 10).float(),
    )
    with pytest.raises(UserError, match="stand-in is not the same network as ours"):
        run.agreement(net, tasks.batch_of(TINY["small"], CPU)[0], {"stand-in": other})


def test_the_floor_does_the_networks_products_and_nothing_else() -> None:
    net = tasks.network_of(TINY["small"], CPU)
    x, _ = tasks.batch_of(TINY["small"], CPU)
    floor = Floor(net, x, torch.float32)
    assert [layer.first for layer in floor.layers] == [True] + [False] * 6
    assert [len(layer.x) for layer in floor.layers] == [8] + [24] * 5 + [8], (
        "the first layer once, the last on the mean over time"
    )
    convolutions = [(3, 4, 16), (4, 4, 16), (4, 8, 8), (8, 8, 8), (8, 16, 4), (16, 16, 4)]
    by_hand = [2 * 9 * a * b * s * s * (8 if k == 0 else 24) for k, (a, b, s) in enumerate(convolutions)] + [
        2 * 8 * 64 * 10
    ]
    assert [layer.operations for layer in floor.layers] == by_hand
    assert floor.train_operations == sum(v * (2 if k == 0 else 3) for k, v in enumerate(by_hand))
    floor.train()
    floor.attack()


@pytest.mark.parametrize("precision", tasks.PRECISIONS)
def test_the_plain_loop_does_what_the_training_step_does(precision: str) -> None:
    """A user's own loop around ``sg.build``, without ``prefer``, gives the same weights as our step."""
    x, y = tasks.batch_of(TINY["small"], CPU)
    nets = [tasks.network_of(TINY["small"], CPU) for _ in range(2)]
    assert nets[1].autocast is None
    steps: list[Callable[[], object]] = [
        tasks.Step(nets[0], x, y, precision, guarded=False),
        tasks.plain_step(nets[1], x, y, precision),
    ]
    for step in steps:
        step()
        step()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("adversarial", [False, True])
def test_contenders_learn_from_their_batch(adversarial: bool) -> None:
    """Every training contender lowers its loss over some steps: none of them is timed doing nothing."""
    x, y = tasks.batch_of(TINY["small"], CPU)
    for guarded in (False, True):
        step = tasks.Step(tasks.network_of(TINY["small"], CPU), x, y, "float32", guarded, adversarial)
        for group in step.optimizer.param_groups:
            group["lr"] = 0.05
        with torch.no_grad():
            before = torch.nn.functional.cross_entropy(step.net(x), y)
        for _ in range(15):
            step()
        with torch.no_grad():
            assert torch.nn.functional.cross_entropy(step.net(x), y) < before
    net = tasks.theirs(tasks.network_of(TINY["small"], CPU), stand_in(), None)
    held = [p.clone() for p in net.parameters()]
    tasks.their_step(net, x, y, (lambda x, y: x) if adversarial else None)()
    assert any(not torch.equal(a, b) for a, b in zip(held, net.parameters(), strict=True))


def test_ratios_are_those_of_the_rounds() -> None:
    seconds = {
        "floor float32": (1.0, 2.0, 3.0),
        "TGO float32": (2.0, 3.0, 6.0),
        "floor bfloat16": (4.0, 4.0, 4.0),
        "TGO bfloat16": (9.0, 9.0, 9.0),
    }
    timed = run.summary(seconds, 10)
    assert timed.best == "TGO float32"
    assert timed.over_floor == {"TGO float32": 2.0, "TGO bfloat16": 2.25}
    assert timed.best_over_floor == 2.0
    assert timed.over_best["floor bfloat16"] == pytest.approx(4 / 3)
    assert timed.images_per_second["TGO float32"] == pytest.approx(10 / 3)


def test_rounds_start_with_another_contender_each_time() -> None:
    order: list[str] = []
    work = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = timing.interleaved(work, 3, CPU, warm=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert all(len(v) == 3 for v in seconds.values())


def test_parts_add_up_and_know_their_operations() -> None:
    step = tasks.Step(
        tasks.network_of(TINY["wrn16"], CPU), *tasks.batch_of(TINY["wrn16"], CPU), "float32", True
    )
    step()
    found = parts.parts(step, CPU)
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["convolutions, backward"] > 0
    assert parts.kind("_IntegrateBackward").endswith("backward")
    assert parts.kind("aten::mkldnn_convolution") == "convolutions, forward"
    assert parts.kind("aten::copy_") == "the rest"


def test_half_of_the_images_survive_at_the_eps_that_is_found() -> None:
    subject = replace(TINY["small"], batch=40)
    net = tasks.network_of(subject, CPU)
    x, _ = tasks.batch_of(subject, CPU)
    with torch.no_grad():
        y = net(x).argmax(1)
    eps, share = run.half_eps(net, x, y)
    held = 1 - float(tasks.our_attack(net, x, y, eps, run.STEPS, False)().broken.float().mean())
    assert share == pytest.approx(
        1 - float(tasks.our_attack(net, x, y, eps, run.STEPS, True)().broken.float().mean())
    )
    assert 0.0 < share < 1.0
    assert share <= held, "dropping broken samples at their first break can only find more"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from Linux")
def test_peak_memory_is_that_of_the_step() -> None:
    """A step keeps at least its currents, and sixteen times the batch needs more.

    Nonsense gives no number.
    """
    small = replace(TINY["small"], batch=256, options={"width": 8})  # narrow: memory for little work
    big = replace(small, batch=4096)
    sizes = [present(memory.peak(memory.Case("vanilla", "float32", s, "cpu", 2))) for s in (small, big)]
    currents = 3 * 4096 * 4 * (8 * 256 + 16 * 64 + 32 * 16)
    assert currents < sizes[1] < 20 * currents
    assert sizes[0] < sizes[1] - currents / 2
    unknown = replace(small, network="no such network")
    assert memory.peak(memory.Case("vanilla", "float32", unknown, "cpu", 2)) is None


def test_powers_of_growth() -> None:
    assert growth._curve((1, 2, 4), {"1": (1.0,), "2": (3.0,), "4": (12.0,)}).power == pytest.approx(2.0)


def test_bench_verb_writes_record_and_picture_and_resumes(
    little_data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On little data, without the processes that measure memory."""
    monkeypatch.setattr(run.Settings, "subjects", property(lambda self: (TINY["small"],)))
    monkeypatch.setattr(run.Settings, "small", property(lambda self: TINY["small"]))
    monkeypatch.setattr(run.Settings, "images", property(lambda self: 20))
    monkeypatch.setattr(peers, "installed", lambda: {"stand-in 1": stand_in})
    monkeypatch.setattr(tasks, "their_attack", lambda net, eps, step_size, steps: lambda x, y: x)
    monkeypatch.setattr(peers, "versions", lambda: {"torchattacks": "of this test"})
    monkeypatch.setattr(memory, "peak", lambda case: case.subject.batch * 2**20)
    monkeypatch.setattr(run, "load_data", lambda name: little_data)
    monkeypatch.setattr(run, "train", lambda recipe, **rest: train(replace(recipe, train_images=500), **rest))
    assert (
        main(
            ["bench", "--quick", "--rounds", "1", "--out", str(tmp_path), "--device", "cpu", "--threads", "2"]
        )
        == 0
    )
    shown = capsys.readouterr().out
    record = read_json(tmp_path / "bench.json")
    assert record["finished"]
    assert list(record["timed"]) == [
        "training step, small",
        "adversarial step, small",
        "PGD-20, small network, trained",
    ]
    assert "small" in record["memory"]["bytes"]
    assert "times our best" in shown
    assert "dropping broken samples is" in shown
    assert "next: install spikingjelly, snntorch beside spikeguard" in shown
    assert (tmp_path / "bench.svg").read_text().startswith("<svg")
    del record["memory"]
    kept = json.dumps(record["timed"])
    (tmp_path / "bench.json").write_text(json.dumps(record))
    monkeypatch.setattr(tasks, "training", lambda *a: pytest.fail("a finished task was run again"))
    assert (
        main(
            [
                "bench",
                "--quick",
                "--rounds",
                "1",
                "--out",
                str(tmp_path),
                "--device",
                "cpu",
                "--threads",
                "2",
                "--resume",
                "--json",
            ]
        )
        == 0
    )
    again = json.loads(capsys.readouterr().out)
    assert "small" in again["memory"]["bytes"]
    assert json.dumps(again["timed"]) == kept
    assert (
        main(
            [
                "bench",
                "--quick",
                "--rounds",
                "2",
                "--out",
                str(tmp_path),
                "--device",
                "cpu",
                "--threads",
                "2",
                "--resume",
            ]
        )
        == 2
    )
    assert "made with other settings" in capsys.readouterr().err


def test_growth_is_drawn_too() -> None:
    subject = TINY["small"]
    record = BenchRecord(
        settings=BenchSettings(),
        machine=machine(),
        threads=2,
        path="eager",
        peers={},
        timed={"training step, small": run.summary({"floor float32": (1.0,), "TGO float32": (1.2,)}, 4)},
        growth=Growth(
            curves={"side": GrowthCurve((1, 2), (1.0, 2.0), 1.0)},
            base=subject,
            large=LargeCase(subject, {"bfloat16": None}),
        ),
    )
    assert "seconds against side" in picture(record)


def test_the_bench_starts_without_any_framework() -> None:
    """In a process where none can be imported."""
    hidden = "import sys; sys.modules.update(dict.fromkeys(('spikingjelly', 'snntorch', 'torchattacks')))"
    code = f"{hidden}; import spikeguard.cli.bench, spikeguard.bench.run"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_versions_are_those_installed() -> None:
    for name, installed in peers.versions().items():
        assert version(name) == installed
    with pytest.raises(PackageNotFoundError):
        version("no-such-framework")
