"""Timing in turns: on a shared machine only ratios of work done at nearly the same moment mean anything."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Work = Callable[[], object]


def interleaved(
    work: Mapping[str, Work],
    rounds: int,
    device: torch.device,
    report: Callable[[int, int], None] = lambda done, total: None,
    warm: int = 1,
) -> dict[str, tuple[float, ...]]:
    """Seconds of each piece of work in each of ``rounds``.

    Every round runs all of them, each time starting with another one.
    """
    names = list(work)
    for name in names:
        for _ in range(warm):
            work[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(once(work[name], device))
        report(turn + 1, rounds)
    return {name: tuple(values) for name, values in seconds.items()}


def once(work: Work, device: torch.device) -> float:
    """Seconds of one call, to the end of what it started on a GPU."""
    finish(device)
    begun = time.perf_counter()
    work()
    finish(device)
    return time.perf_counter() - begun


def finish(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))
