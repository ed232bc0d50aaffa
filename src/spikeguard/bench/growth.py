"""How time and memory grow with time steps, batch, image side and attack steps.

A network of ours alone, a power fitted to each curve.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from spikeguard.bench import memory, tasks, timing
from spikeguard.bench.tasks import SMALL

BASE = replace(SMALL, options={"width": 32}, batch=32)
CURVES: dict[str, tuple[int, ...]] = {
    "timesteps": (1, 2, 4, 8, 16),
    "batch": (8, 16, 32, 64, 128, 256, 512),
    "side": (32, 64, 96, 128, 224),
}
ATTACK_STEPS = (1, 5, 10, 20, 40)
LARGE = replace(tasks.WRN16, batch=8, timesteps=16, in_shape=(3, 224, 224))


def growth(device: torch.device, rounds: int, report: Callable[[int, int], None]) -> dict[str, Any]:
    """Seconds of a guarded training step along each axis, the others at their base; PGD against its steps.

    Peak memory of a large case.
    """
    found: dict[str, Any] = {}
    for axis, values in CURVES.items():
        work = {}
        for value in values:
            if axis == "side":
                subject = replace(BASE, in_shape=(3, value, value), batch=8)
            else:
                subject = replace(BASE, **{axis: value})  # type: ignore[arg-type]
            x, y = subject.images(device)
            work[str(value)] = tasks.Step(subject.network_on(device, settle=False), x, y, "float32", True)
        found[axis] = _curve(values, timing.interleaved(work, rounds, device, report, warm=2))
    x, y = BASE.images(device)
    net = BASE.network_on(device)
    attacks = {str(n): tasks.our_attack(net, x, y, 8 / 255, n, False) for n in ATTACK_STEPS}
    found["attack steps"] = _curve(ATTACK_STEPS, timing.interleaved(attacks, rounds, device, report))
    threads = torch.get_num_threads()
    large = {
        f"bfloat16{', checkpoint' if checkpoint else ''}": memory.peak(
            "TGO", "bfloat16", asdict(LARGE), device.type, threads, checkpoint
        )
        for checkpoint in (False, True)
    }
    return {"curves": found, "base": asdict(BASE), "large": {"subject": asdict(LARGE), "bytes": large}}


def _curve(values: tuple[int, ...], seconds: dict[str, list[float]]) -> dict[str, Any]:
    medians = [statistics.median(seconds[str(v)]) for v in values]
    return {"values": list(values), "seconds": medians, "power": _power(values, medians)}


def _power(values: tuple[int, ...], seconds: list[float]) -> float:
    """Exponent of the last doubling or so: 1 is linear."""
    return math.log(seconds[-1] / seconds[-2]) / math.log(values[-1] / values[-2])
