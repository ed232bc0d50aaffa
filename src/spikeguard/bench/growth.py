"""How time and memory grow with time steps, batch, image side and attack steps.

A network of ours alone, a power fitted to each curve.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch

from spikeguard.bench import memory, tasks, timing
from spikeguard.bench.tasks import SMALL
from spikeguard.records.bench import Growth, GrowthCurve, LargeCase

BASE = replace(SMALL, options={"width": 32}, batch=32)
CURVES: dict[str, tuple[int, ...]] = {
    "timesteps": (1, 2, 4, 8, 16),
    "batch": (8, 16, 32, 64, 128, 256, 512),
    "side": (32, 64, 96, 128, 224),
}
ATTACK_STEPS = (1, 5, 10, 20, 40)
LARGE = replace(tasks.WRN16, batch=8, timesteps=16, in_shape=(3, 224, 224))


def growth(device: torch.device, rounds: int, report: Callable[[int, int], None]) -> Growth:
    """Seconds of a guarded training step along each axis, the others at their base; PGD against its steps.

    Peak memory of a large case.
    """
    curves: dict[str, GrowthCurve] = {}
    for axis, values in CURVES.items():
        work = {}
        for value in values:
            if axis == "side":
                subject = replace(BASE, in_shape=(3, value, value), batch=8)
            else:
                subject = replace(BASE, **{axis: value})  # type: ignore[arg-type]
            x, y = tasks.batch_of(subject, device)
            net = tasks.network_of(subject, device, settle=False)
            work[str(value)] = tasks.Step(net, x, y, "float32", True)
        curves[axis] = _curve(values, timing.interleaved(work, rounds, device, report, warm=2))
    x, y = tasks.batch_of(BASE, device)
    net = tasks.network_of(BASE, device)
    attacks = {str(n): tasks.our_attack(net, x, y, 8 / 255, n, False) for n in ATTACK_STEPS}
    curves["attack steps"] = _curve(ATTACK_STEPS, timing.interleaved(attacks, rounds, device, report))
    threads = torch.get_num_threads()
    large = {
        f"bfloat16{', checkpoint' if checkpoint else ''}": memory.peak(
            memory.Case("TGO", "bfloat16", LARGE, device.type, threads, checkpoint)
        )
        for checkpoint in (False, True)
    }
    return Growth(curves, BASE, LargeCase(LARGE, large))


def _curve(values: tuple[int, ...], seconds: dict[str, tuple[float, ...]]) -> GrowthCurve:
    medians = tuple(statistics.median(seconds[str(v)]) for v in values)
    return GrowthCurve(values, medians, _power(values, medians))


def _power(values: tuple[int, ...], seconds: tuple[float, ...]) -> float:
    """Exponent of the last doubling or so: 1 is linear."""
    return math.log(seconds[-1] / seconds[-2]) / math.log(values[-1] / values[-2])
