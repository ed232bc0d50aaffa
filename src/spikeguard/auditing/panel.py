"""Small attacks outside the suite: on some images, counted by the model itself. Controls are made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from spikeguard.attacks import Attacked
from spikeguard.auditing.scoring import fresh_draws
from spikeguard.auditing.task import Task
from spikeguard.gradients import ASSG, BPDA, EOT, Estimator, Own, SwapSurrogate
from spikeguard.models import eval_mode, is_wrong, logits_of
from spikeguard.random import draws
from spikeguard.records.schema import Settings
from spikeguard.surrogates import Atan, Rectangle, StraightThrough
from spikeguard.threat import Threat

LADDER: tuple[Estimator, ...] = (
    Own(),
    ASSG(start_from_first=True),
    SwapSurrogate(StraightThrough()),
    SwapSurrogate(Rectangle(1.0)),
    BPDA(Atan(4.0)),
)
OTHERS: tuple[Estimator, ...] = (SwapSurrogate(StraightThrough()), BPDA(Atan(4.0)))
EOT_DRAWS = 3
FEW_PIXELS = 16
"""Values an image below which random points find what gradients find: a linear function rises along its
gradient about ``pixels ** 0.5 / 2`` times as far as to the best of 200 random points."""


def evenly_spaced(task: Task, count: int) -> Tensor:
    """Rows of ``count`` images spread evenly over all.

    Of half as many for a random model, whose every gradient is an average.
    """
    count = count // 2 if task.random else count
    last, count = len(task.x) - 1, min(count, len(task.x))
    rows: Tensor = torch.linspace(0, last, count, dtype=torch.float32, device="cpu").round().long().unique()
    return rows


def subset(task: Task, rows: Tensor) -> Task:
    """The task on some of its images, without its session."""
    at = rows.to(task.x.device)
    plan = replace(task.plan, random=task.random, eot_draws=1)
    x, y, threat = task.x[at], task.y[at], task.threat.select(at)
    return Task(task.model, x, y, threat, task.members, task.sample_ids[rows.cpu()], plan)


def broken_by(
    task: Task,
    threat: Threat,
    attack: Callable[..., Attacked],
    settings: Settings,
    estimator: Estimator | None = None,
) -> Tensor:
    """The samples that an attack breaks, by the model itself, ``[N]`` bool: none where it has no gradient."""
    if estimator is not None:
        averaged = task.random and not isinstance(estimator, EOT)
        settings = {**settings, "gradient": EOT(EOT_DRAWS, estimator) if averaged else estimator}
    try:
        got = attack(task.model, task.x, task.y, threat, **settings)
    except Exception:  # whatever the model raises: the run of the suite has noted it
        return torch.zeros(len(task.x), dtype=torch.bool, device=task.x.device)
    return ~right_at(task, got.x)


def right_at(task: Task, x: Tensor) -> Tensor:
    with eval_mode(task.model):
        if task.random:
            return fresh_draws(task.model, x, task.y, draws.key(task.seed, "control"), 20) > 0.5
        with torch.no_grad():
            parts = zip(x.split(task.batch_size), task.y.split(task.batch_size), strict=True)
            return ~torch.cat([is_wrong(logits_of(task.model, a), b) for a, b in parts])
