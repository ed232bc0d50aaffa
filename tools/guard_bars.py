"""What ``sg.guard`` does to networks of SpikingJelly and snnTorch: results/guard-bars.json.

python tools/guard_bars.py FOLDER DATA    (DATA: the folder of CIFAR-10)

A cell is a training of three convolutions on 5,000 images, without the guard or with it, and its audit on
test images; the control is the network without it, its batch-norm gains scaled to the neighbor share of the
guarded one. The record grows in FOLDER/guard-bars.json, where the same command continues; complete, it
replaces the one in results. FOLDER also keeps the weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikeguard as sg
from spikeguard import adapters
from spikeguard.data.images import Dataset
from spikeguard.diagnosis.neighbors import gain_scaled, neighbors
from spikeguard.random import draws
from spikeguard.records.base import Record
from spikeguard.records.schema import Accuracy
from spikeguard.runtime.machine import Machine, machine
from spikeguard.training.checkpoint import load_tensors, put_weights, save_tensors
from spikeguard.training.factory import weights_of

OUT = Path(__file__).parents[1] / "results" / "guard-bars.json"
FRAMEWORKS, SEEDS = ("spikingjelly", "snntorch"), (0, 1, 2)
WIDTHS, STEPS, EPOCHS, BATCH, LR = (16, 32, 32), 4, 5, 50, 3e-3
TRAINING, VALIDATION, TEST = 5000, 500, 100
DELTA, SIGMA, LAMBDA = 0.5, 0.1, 0.4
EPS = 2 / 255
NEAR = 0.2
"""Neighbors are potentials within it of the threshold."""


@dataclass(frozen=True)
class Cell:
    """A network after training: share of neighbors on validation images, accuracies on test images.

    ``factor``: of the gains, in the control.
    """

    neighbors: float
    validation: float
    clean: Accuracy
    worst_case: Accuracy
    flags: tuple[str, ...]
    seconds: float
    factor: float = 1.0


@dataclass(frozen=True)
class GuardBars(Record):
    """Cells by name."""

    kind: ClassVar[str] = "guard bars"
    machine: Machine
    settings: dict[str, object]
    cells: dict[str, Cell] = field(default_factory=dict)


class SpikingJelly(nn.Module):
    """Time first, whole sequences."""

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], widths: tuple[int, ...] = WIDTHS
    ) -> None:
        super().__init__()
        from spikingjelly.activation_based import layer, neuron, surrogate

        def block(into: int, out: int) -> list[nn.Module]:
            return [
                layer.Conv2d(into, out, 3, stride=1 + (into == 3), padding=1, bias=False, step_mode="m"),
                layer.BatchNorm2d(out, step_mode="m"),
                neuron.LIFNode(detach_reset=True, surrogate_function=surrogate.ATan(), step_mode="m"),
                layer.AvgPool2d(2 - (into == 3), step_mode="m"),
            ]

        pairs = zip((3, *widths), widths, strict=False)
        self.body = nn.Sequential(*(part for a, b in pairs for part in block(a, b)))
        self.head = nn.Linear(widths[-1] * 16, 10)
        self.normalize = Normalize(mean, std)

    def forward(self, x: Tensor) -> Tensor:
        adapters.reset(self)
        x = self.normalize(x)
        logits: Tensor = self.head(self.body(x.expand(STEPS, *x.shape)).mean(0).flatten(1))
        return logits


class SnnTorch(nn.Module):
    """Stepped in a loop, states in the open."""

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], widths: tuple[int, ...] = WIDTHS
    ) -> None:
        super().__init__()
        import snntorch

        pairs = list(zip((3, *widths), widths, strict=False))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=1 + (a == 3), padding=1, bias=False) for a, b in pairs
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths)
        self.neurons = nn.ModuleList(snntorch.Leaky(beta=0.5) for _ in widths)
        self.head = nn.Linear(widths[-1] * 16, 10)
        self.normalize = Normalize(mean, std)

    def forward(self, x: Tensor) -> Tensor:
        states: list[Any] = [neuron.init_leaky() for neuron in self.neurons]  # type: ignore[operator]
        x, out = self.normalize(x), []
        for _ in range(STEPS):
            h = x
            for k, neuron in enumerate(self.neurons):
                h, states[k] = neuron(self.norms[k](self.convolutions[k](h)), states[k])
                h = F.avg_pool2d(h, 2) if k else h
            out.append(h.flatten(1))
        logits: Tensor = self.head(torch.stack(out).mean(0))
        return logits


class Normalize(nn.Module):
    """Images in [0, 1] to mean 0 and deviation 1."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (mean, std))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


NETWORKS: dict[str, Callable[..., nn.Module]] = {"spikingjelly": SpikingJelly, "snntorch": SnnTorch}


def build(framework: str, seed: int, data: Dataset) -> nn.Module:
    """An untrained network."""
    torch.manual_seed(draws.key("guard bars", seed))
    return NETWORKS[framework](data.mean, data.std)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, g: Any = None) -> None:
    """One step as a user writes it."""
    loss = F.cross_entropy(net(x), y)
    if g is not None:
        loss = loss + g.penalty()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if g is not None:
        g.step()


def train(net: nn.Module, data: Dataset, seed: int, guarded: bool) -> float:
    """Train in place; the seconds it took."""
    begun, images = time.perf_counter(), data.train.balanced(TRAINING)
    total = EPOCHS * (TRAINING // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    opened = sg.guard(net, total_steps=total, delta=DELTA, sigma=SIGMA, lambda_max=LAMBDA)
    net.train()

    def loop(g: Any = None) -> None:
        for epoch in range(EPOCHS):
            order = torch.randperm(TRAINING, generator=draws.generator("order", seed, epoch))
            for rows in order.split(BATCH):
                part = images.select(rows)
                x = part.pixels()
                step(net, optimizer, torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, x.flip(3)), part.y, g)
                schedule.step()

    if guarded:
        with opened as g:
            loop(g)
    else:
        loop()
    net.eval()
    return time.perf_counter() - begun


def held_out(data: Dataset) -> tuple[Tensor, Tensor]:
    """Images of the training set that no training sees."""
    seen = set(data.train.balanced(TRAINING).index.tolist())
    rest = [k for k in range(len(data.train)) if int(data.train.index[k]) not in seen][:VALIDATION]
    images = data.train.select(torch.tensor(rest))
    return images.pixels(), images.y


def judge(net: nn.Module, data: Dataset, seconds: float, factor: float = 1.0) -> Cell:
    """Neighbors, accuracy, and a quick audit."""
    x, y = held_out(data)
    with torch.no_grad():
        validation = float((net(x).argmax(1) == y).float().mean())
    test = data.test.balanced(TEST)
    found = sg.audit(net, test.pixels(), test.y, sg.Linf(EPS), effort="quick")
    return Cell(
        round(neighbors(net, x, NEAR).mean, 4),
        round(validation, 4),
        found.record.clean,
        found.record.worst_case,
        tuple(f.id for f in found.record.flags if f.level != "info"),
        round(seconds, 1),
        round(factor, 3),
    )


def trained(folder: Path, framework: str, seed: int, guarded: bool, data: Dataset) -> tuple[nn.Module, float]:
    """The network of a cell, from its file if there is one, and how long it trained."""
    path = folder / f"{framework}-{seed}-{'guard' if guarded else 'plain'}.safetensors"
    net = build(framework, seed, data)
    if path.exists():
        tensors, metadata = load_tensors(path)
        put_weights(net, tensors, path)
        return net.eval(), float(str(metadata["progress"]))
    seconds = train(net, data, seed, guarded)
    save_tensors(path, weights_of(net), {"progress": seconds})
    return net, seconds


def control(folder: Path, framework: str, seed: int, data: Dataset, share: float) -> Cell:
    """The network without the guard, scaled to the neighbor share of the guarded one."""
    net, _ = trained(folder, framework, seed, False, data)
    twin, factor = gain_scaled(net, held_out(data)[0], share, NEAR, 8)
    return judge(twin, data, 0.0, factor)


def settings() -> dict[str, object]:
    """What the record was made with."""
    return {
        "widths": list(WIDTHS),
        "timesteps": STEPS,
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "lr": LR,
        "images": TRAINING,
        "test_images": TEST,
        "delta": DELTA,
        "sigma": SIGMA,
        "lambda_max": LAMBDA,
        "eps": EPS,
        "near": NEAR,
    }


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(str(__doc__).split("\n\n")[1])
    torch.set_num_threads(1)
    folder, data = Path(sys.argv[1]), sg.load_data("cifar10", sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    grows = folder / OUT.name
    record = GuardBars.read(grows) if grows.exists() else GuardBars(machine(), settings())
    if record.settings != settings():
        sys.exit(f"{grows} has other settings: move it away first")
    for seed in SEEDS:
        for framework in FRAMEWORKS:
            for variant in ("plain", "guard", "control"):
                name = f"{framework}-{seed}-{variant}"
                if name in record.cells:
                    continue
                if variant == "control":
                    share = record.cells[f"{framework}-{seed}-guard"].neighbors
                    cell = control(folder, framework, seed, data, share)
                else:
                    net, seconds = trained(folder, framework, seed, variant == "guard", data)
                    cell = judge(net, data, seconds)
                record = replace(record, cells={**record.cells, name: cell})
                record.write(grows)
                print(
                    name, cell.neighbors, cell.validation, cell.clean.value, cell.worst_case.value, flush=True
                )
    record.write(OUT)


if __name__ == "__main__":
    main()
