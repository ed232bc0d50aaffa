"""Where the time of one step goes, by torch's own profiler."""

from __future__ import annotations

import torch

from spikeguard.bench.timing import Work, finish

KINDS = (
    ("convolutions, backward", ("convolution_backward", "_SmallBackward")),
    ("convolutions, forward", ("convolution", "conv2d", "_Small")),
    (
        "neurons with batch norm and pooling, backward",
        ("_IntegrateBackward", "batch_norm_backward", "avg_pool2d_backward"),
    ),
    ("neurons with batch norm and pooling, forward", ("_Integrate", "batch_norm", "avg_pool2d")),
    ("linear layers", ("addmm", "aten::mm", "linear")),
    ("joins of residual blocks", ("_Join",)),
    ("optimizer", ("Optimizer", "sgd")),
)


def kind(operation: str) -> str:
    """The part that an operation of the profiler belongs to."""
    return next((name for name, marks in KINDS if any(mark in operation for mark in marks)), "the rest")


def parts(work: Work, device: torch.device) -> dict[str, float]:
    """Share of the step's own time in each part, the largest first."""
    cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CUDA] if cuda else [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiled:
        work()
        finish(device)
    spent: dict[str, float] = {}
    for event in profiled.key_averages():
        seconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        spent[kind(event.key)] = spent.get(kind(event.key), 0.0) + seconds
    total = sum(spent.values()) or 1.0
    return {name: value / total for name, value in sorted(spent.items(), key=lambda item: -item[1])}
