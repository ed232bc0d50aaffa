"""``harden``: a robust network without a loop of one's own, that can be stopped and resumed."""

import copy
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import spikeguard as sg
from spikeguard.defenses.base import Moment
from spikeguard.errors import Interrupted, UserError
from spikeguard.neurons import spiking
from spikeguard.random import draws
from spikeguard.records.read import read_record
from spikeguard.records.training import HardeningRecord
from spikeguard.training import Report

SETTINGS = sg.training.Hardening(epochs=2, lr=0.02, at=sg.AT(eps=0.1, steps=1), seed=3)


class Net(nn.Module):
    """Plain torch with layers of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), sg.LIF(decay=0.5), nn.Dropout(0.1))
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = 4 * x.flatten(1) - 2
        logits: Tensor = self.head(self.body(x.expand(3, *x.shape)).mean(0))
        return logits


class Stateful(Net):
    """Never reset."""

    def __init__(self) -> None:
        super().__init__()
        self.before = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.before += 1.0
        return super().forward(x) * self.before


def net() -> Net:
    torch.manual_seed(1)
    return Net()


def data(n: int = 48) -> TensorDataset:
    x = torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x.flatten(1)[:, 0] > x.flatten(1)[:, 1]).long())


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(data(), batch_size=12, shuffle=True)


def state(model: nn.Module) -> list[Tensor]:
    return [t.clone() for t in model.state_dict().values()]


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(state(a), state(b), strict=True))


def test_it_trains_leaves_a_record_and_reports_the_time_left(tmp_path: Path) -> None:
    reports: list[Report] = []
    model, before = net(), torch.get_rng_state()
    done = sg.harden(
        model, loader(), SETTINGS, out=tmp_path / "run", validation=loader(), progress=reports.append
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert done.model is model
    assert not model.training
    assert [(r.step, r.steps) for r in reports] == [(k, 8) for k in range(1, 9)]
    assert reports[0].seconds_left is not None
    assert reports[-1].seconds_left == 0
    record = read_record(tmp_path / "run" / "hardening.json")
    assert isinstance(record, HardeningRecord)
    assert record == done.record
    assert (record.cost.steps, record.cost.images, len(record.epochs)) == (8, 48, 2)
    assert record.epochs[0].penalty < record.epochs[1].penalty
    assert record.epochs[1].validation_accuracy is not None
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["hardening.json", "weights.safetensors"]
    assert all(not layer.requests for layer in spiking(model).values())


def test_a_step_is_at_tgo_and_rat_as_they_are_elsewhere() -> None:
    """One step by hand with the parts' own functions."""
    model, twin = net(), net()
    for m in (model, twin):
        m.body[2] = nn.Identity()
    batch = [next(iter(DataLoader(data(), batch_size=12)))]
    quiet = replace(SETTINGS, epochs=1, optimizer="sgd", tgo=sg.TGO(sigma=0.0), rat=sg.RAT(beta=0.1))
    sg.harden(model, batch, quiet)
    x, y = batch[0]
    assert quiet.at is not None
    found = quiet.at.adversaries(Moment(twin, x, y, draws.key(3, "harden", 0)))
    assert float((found - x).abs().max()) <= 0.1 + 1e-6
    matrices, vectors = ([p for p in twin.parameters() if (p.dim() > 1) == big] for big in (True, False))
    step = torch.optim.SGD(matrices, 0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)
    step.add_param_group({"params": vectors, "weight_decay": 0.0})
    F.cross_entropy(twin.train()(found), y).backward()  # lambda begins at 0
    step.step()
    with torch.no_grad():
        for layer in (twin.body[0], twin.head):
            assert isinstance(layer, nn.Linear)
            w = layer.weight.clone()
            layer.weight.copy_(1.1 * w - 0.1 * (w @ w.T) @ w)
    for a, b in zip(state(model), state(twin), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("at", [4, 6])
def test_a_stopped_training_goes_on_to_the_same_bits(optimizer: str, at: int, tmp_path: Path) -> None:
    settings = replace(SETTINGS, optimizer=optimizer)  # type: ignore[arg-type]
    unbroken = sg.harden(net(), loader(), settings).model
    stop = threading.Event()

    def until(report: Report) -> None:
        if report.step == at:
            stop.set()

    with pytest.raises(Interrupted, match="resume=True"):
        sg.harden(net(), loader(), settings, out=tmp_path / "run", progress=until, stop=stop)
    torch.manual_seed(9)
    model = Net()
    done = sg.harden(model, loader(), settings, out=tmp_path / "run", resume=True)
    assert equal(done.model, unbroken)
    assert len(done.record.epochs) == 2
    with pytest.raises(UserError, match="holds a finished training"):
        sg.harden(model, loader(), settings, out=tmp_path / "run", resume=True)


def test_another_training_is_not_resumed(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        sg.harden(net(), loader(), SETTINGS, out=tmp_path / "run", stop=stop)
    with pytest.raises(UserError, match="is not empty; go on with resume=True"):
        sg.harden(net(), loader(), SETTINGS, out=tmp_path / "run")
    with pytest.raises(UserError, match="resume with the same settings and loader"):
        sg.harden(net(), loader(), replace(SETTINGS, lr=0.1), out=tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="checkpoint of another network"):
        sg.harden(nn.Sequential(net()), loader(), SETTINGS, out=tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="resume needs the folder"):
        sg.harden(net(), loader(), SETTINGS, resume=True)
    with pytest.raises(Interrupted, match="no folder to be kept in"):
        sg.harden(net(), loader(), SETTINGS, stop=stop)


class Unsized:
    def __iter__(self) -> Iterator[object]:
        return iter(loader())


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no length", "loader must have a length"),
        ("empty", "loader must have a length of at least 1"),
        ("normalized", "normalize inside the model"),
        ("no labels", r"a batch of the loader must be \(images, labels\)"),
        ("labels", "labels are torch.float32"),
        ("classes", "labels lie in"),
        ("stateful", "keeps state between calls"),
        ("no neurons", "has no neurons that spikeguard knows"),
        ("not a model", "model = 3 must be"),
        ("settings", "epochs = 0 must be at least 1"),
    ],
)
def test_bad_input_ends_in_one_line(case: str, message: str) -> None:
    x, y = data().tensors
    model: object = Stateful() if case == "stateful" else net()
    model = 3 if case == "not a model" else nn.Linear(2, 2) if case == "no neurons" else model
    batches: object = {
        "no length": Unsized(),
        "empty": [],
        "normalized": [(4 * x - 2, y)],
        "no labels": [(x,)],
        "labels": [(x, y.float())],
        "classes": [(x, y + 7)],
    }.get(case, [(x, y)])
    epochs = 0 if case == "settings" else 1
    with pytest.raises(UserError, match=message) as error:
        sg.harden(model, batches, replace(SETTINGS, epochs=epochs))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_loader_that_lies_about_its_length_is_refused() -> None:
    class Short:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
            return iter([data().tensors])

    with pytest.raises(UserError, match="has a length of 3 but gave 1"):
        sg.harden(net(), Short(), SETTINGS)


def test_it_makes_a_network_more_robust() -> None:
    x, y = data(96).tensors
    batches = [(x[k : k + 24], y[k : k + 24]) for k in range(0, 96, 24)]
    accuracy = {}
    plain = sg.training.Hardening(8, lr=0.02, at=None, tgo=None, rat=None)
    for hard, chosen in ((False, plain), (True, replace(SETTINGS, epochs=8))):
        model = sg.harden(net(), batches, chosen).model
        broken = sg.pgd(copy.deepcopy(model), x, y, sg.Linf(0.1), steps=5, restarts=1).broken
        accuracy[hard] = 1 - float(broken.float().mean())
    assert accuracy[True] > accuracy[False]
