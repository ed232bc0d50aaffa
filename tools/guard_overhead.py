"""What a tap and ``sg.guard`` add to a step of SpikingJelly and snnTorch: results/guard-overhead.json.

python tools/guard_overhead.py OUT [BLOCKS]

Networks, losses and steps are those of ``guard_bars``, wider, on random images and one thread. A block
takes CPU seconds of four steps, without, with, with, without; its ratio compares the sums. Other work on the
machine changes the seconds, but hardly the ratios.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from guard_bars import FRAMEWORKS, NETWORKS, step

import spikeguard as sg
from spikeguard.records.base import Record
from spikeguard.runtime.machine import Machine, machine

WIDTHS, BATCH, SIZE, BLOCKS = (32, 64, 128), 64, 32, 15
Timed = Callable[[], float]
"""One step; its CPU seconds."""


@dataclass(frozen=True)
class Cost:
    """A step with something, relative to one without: median and quartiles over blocks; seconds without."""

    ratio: float
    quartiles: tuple[float, float]
    plain_seconds: float


@dataclass(frozen=True)
class GuardOverhead(Record):
    """Costs by framework, then by what is open."""

    kind: ClassVar[str] = "guard overhead"
    machine: Machine
    settings: dict[str, object]
    costs: dict[str, dict[str, Cost]]


def timed(framework: str) -> tuple[Timed, dict[str, Timed]]:
    """A step of a fresh network, and the same step with something open."""
    torch.manual_seed(0)
    net = NETWORKS[framework]((0.5,) * 3, (0.25,) * 3, WIDTHS).train()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    x, y = torch.rand(BATCH, 3, SIZE, SIZE), torch.randint(0, 10, (BATCH,))

    def plain() -> float:
        begun = time.process_time()
        step(net, optimizer, x, y)
        return time.process_time() - begun

    def read() -> float:
        with sg.tap(net):
            return plain()

    def guarded(sigma: float) -> float:
        with sg.guard(net, total_steps=2, steps_done=1, sigma=sigma) as g:
            begun = time.process_time()
            step(net, optimizer, x, y, g)
            return time.process_time() - begun

    return plain, {"tap": read, "guard without noise": lambda: guarded(0.0), "guard": lambda: guarded(0.1)}


def costs(framework: str, blocks: int) -> dict[str, Cost]:
    """Each of the costs, in turns."""
    plain, others = timed(framework)
    for work in (plain, *others.values()):
        work()
    ratios: dict[str, list[float]] = {name: [] for name in others}
    without: list[float] = []
    for _ in range(blocks):
        for name, work in others.items():
            before, first, second, after = plain(), work(), work(), plain()
            ratios[name].append((first + second) / (before + after))
            without += [before, after]
    seconds = round(statistics.median(without), 4)
    return {name: cost(values, seconds) for name, values in ratios.items()}


def cost(ratios: list[float], seconds: float) -> Cost:
    """Rounded, as the record holds it."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Cost(round(middle, 3), (round(low, 3), round(high, 3)), seconds)


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(str(__doc__).split("\n\n")[1])
    torch.set_num_threads(1)
    blocks = int(sys.argv[2]) if len(sys.argv) == 3 else BLOCKS
    settings: dict[str, object] = {
        "widths": list(WIDTHS),
        "batch_size": BATCH,
        "image_size": SIZE,
        "blocks": blocks,
        "threads": 1,
    }
    found: dict[str, dict[str, Cost]] = {}
    for framework in FRAMEWORKS:
        found[framework] = costs(framework, blocks)
        for name, value in found[framework].items():
            print(
                f"{framework}, {name}: {value.ratio} ({value.quartiles[0]} to {value.quartiles[1]})",
                flush=True,
            )
    GuardOverhead(machine(), settings, found).write(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
