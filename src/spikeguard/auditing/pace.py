"""How long an audit may take, from a few passes before it begins."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch

from spikeguard.auditing.member import Member
from spikeguard.auditing.task import Task
from spikeguard.errors import SpikeguardWarning, UserError
from spikeguard.gradients import EOT, ZerothOrder
from spikeguard.gradients.base import derive
from spikeguard.losses import margin
from spikeguard.models import eval_mode, logits_of
from spikeguard.runtime.progress import Progress, no_progress

ANNOUNCED, WARNED = 600.0, 3600.0
"""Seconds from which an audit says how long it may take, and from which it warns whoever sees no progress."""
FIRST, LONG_ENOUGH = 2, 0.2
"""Images that are timed first; seconds long enough to be a pace."""


def work_of(member: Member, draws: int = 1) -> tuple[int, int]:
    """Gradients and queries that a member needs for an image that it does not break.

    >>> from spikeguard.auditing.suite import PGD_20, SQUARE_200
    >>> work_of(PGD_20), work_of(SQUARE_200)
    ((20, 0), (0, 200))
    """
    takes = inspect.signature(member.attack).parameters
    given = {name: p.default for name, p in takes.items()} | dict(member.settings)

    def count(name: str) -> int:
        value = given.get(name)
        return value if isinstance(value, int) else 1

    if "queries" in takes or "tries" in takes:
        more = count("more") if "more" in takes else 0
        return 0, (count("queries") if "queries" in takes else count("tries")) + more
    times = count("steps") * count("restarts") * count("targets") * count("searches")
    if isinstance(member.gradient, ZerothOrder):
        return 0, times * 2 * member.gradient.samples
    return times * (draws if draws > 1 or not isinstance(member.gradient, EOT) else member.gradient.draws), 0


def longest(task: Task, members: Sequence[Member]) -> float:
    """Seconds that the members take if they break nothing; 0 where the model fails."""
    draws = task.plan.eot_draws if task.random else 1
    work = [work_of(m, draws) for m in members]
    gradients, queries = (len(task.x) * sum(one) for one in zip(*work, strict=True)) if work else (0, 0)

    def whole(images: int) -> float:
        x, y = task.x[:images], task.y[:images]
        gradient = _timed(lambda: derive(task.model, x, y, margin)) if gradients else 0.0
        query = _timed(lambda: logits_of(task.model, x)) if queries else 0.0
        return (gradients * gradient + queries * query) / len(x)

    try:
        with eval_mode(task.model), torch.enable_grad():
            whole(FIRST)  # what is made once
            images, found = FIRST, whole(FIRST)
            while found > ANNOUNCED and images < min(len(task.x), task.batch_size):
                begun = time.perf_counter()
                images = min(2 * images, len(task.x), task.batch_size)
                found = min(found, whole(images))
                if time.perf_counter() - begun > LONG_ENOUGH:
                    break
    except UserError:  # the checks that follow say what is wrong
        return 0.0
    return found


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def announce(task: Task, members: Sequence[Member], progress: Progress) -> None:
    """Say how long the members may take, if that is long."""
    seconds = longest(task, members)
    if seconds < ANNOUNCED:
        return
    text = f"{len(members)} attacks may take up to {timedelta(seconds=round(seconds))}"
    progress(f"checking the model; {text}", 0, 1)
    if seconds > WARNED and progress is no_progress:
        warnings.warn(
            f"audit: {text} (h:mm:ss): fewer images, out= to resume, progress= to see how far it is",
            SpikeguardWarning,
            stacklevel=2,
        )
