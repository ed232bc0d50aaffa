"""The loop that all gradient attacks share: who still stands, what was found, what it cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spikeguard.errors import UserError
from spikeguard.gradients import Estimator
from spikeguard.gradients.base import Opened
from spikeguard.losses import Loss, aim
from spikeguard.models import Model
from spikeguard.random import draws
from spikeguard.threat import Threat


@dataclass(frozen=True)
class Attacked:
    """Result of an attack on ``[N, ...]`` images.

    ``x``: for a broken sample the first input that is misclassified, else the one of highest loss.
    ``broken``: ``[N]`` bool. ``loss``: ``[N]`` at ``x``. ``forwards`` and ``backwards`` count samples.
    ``when``: ``[N]``, the step at which a sample was first broken (0: at the start), -1 where it was not, or
    where that was not asked.
    """

    x: Tensor
    broken: Tensor
    loss: Tensor
    forwards: int
    backwards: int
    when: Tensor


class Rule(Protocol):
    """How a step follows from a gradient."""

    def step(self, k: int, x: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        """The next point, before projection, from gradient and loss ``[n]`` at ``x``."""

    def select(self, rows: Tensor) -> None:
        """Only these samples go on."""


Make = Callable[[Tensor, Threat, int], Rule]
"""A fresh step rule for clean images, a threat and a number of steps."""


def remember(held: dict[str, Tensor], x: Tensor, gradient: Tensor, loss: Tensor) -> None:
    """Each sample's point of highest loss so far.

    ``held['best']``, with its ``gradient`` and its loss ``top``.
    """
    better = (loss > held["top"]).view(-1, *[1] * (x.dim() - 1))
    held["best"], held["gradient"] = (
        torch.where(better, x, held["best"]),
        torch.where(better, gradient, held["gradient"]),
    )
    held["top"] = torch.maximum(loss, held["top"])


def sample_ids(index: Tensor | None, x: Tensor) -> Tensor:
    """The samples' numbers; their place in the batch by default."""
    index = torch.arange(len(x)) if index is None else index
    if index.shape != x.shape[:1]:
        raise UserError(f"index has shape {tuple(index.shape)}, must be [{len(x)}]")
    return index


def random_start(x: Tensor, threat: Threat, index: Tensor, seed: int, restart: int) -> Tensor:
    """Uniform in the ball; a function of seed, restart and the sample's number."""
    noise = (
        draws.uniform(draws.key(seed, "start", restart), index.to(x.device), x[0].numel())
        .view_as(x)
        .to(x.dtype)
    )
    return threat.project(x + threat.spread(2 * noise - 1, x), x)


def border_start(x: Tensor, threat: Threat, index: Tensor, key: int) -> Tensor:
    """Uniform noise stretched until its largest pixel lies on the ball's border.

    A function of the key and the sample's number.
    """
    noise = 2 * draws.uniform(key, index.to(x.device), x[0].numel()).view_as(x).to(x.dtype) - 1
    return threat.project(x + threat.stretch(noise, x), x)


def checkpoints(steps: int) -> set[int]:
    """Steps after which APGD looks back and SA-PGD halves its step.

    After 0.22 n, then at gaps shrinking by 0.03 n down to 0.06 n.
    """
    gap, floor, shrink = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    at, found = gap, set()
    while at < steps:
        found.add(at)
        gap = max(gap - shrink, floor)
        at += gap
    return found


class Best:
    """Best point of every sample so far, and who still stands."""

    def __init__(self, x: Tensor, y: Tensor, logits: Tensor, loss: Loss) -> None:
        self.x, self.loss = x.clone(), loss(logits, y)
        self.broken = logits.argmax(1) != y
        self.when = torch.where(self.broken, 0, -1)
        self.forwards, self.backwards = len(x), 0
        self.taken = 0  # steps, by the restarts before this one

    def standing(self) -> Tensor:
        """Rows that are not broken yet."""
        return torch.nonzero(~self.broken).flatten()

    def note(self, rows: Tensor, x: Tensor, loss: Tensor, broken: Tensor, step: int = -1) -> None:
        """Take over points that break their sample or have a higher loss, found at ``step``."""
        better = broken | (loss > self.loss[rows])
        chosen = rows[better]
        self.x[chosen], self.loss[chosen] = x[better], loss[better]
        self.broken[rows[broken]] = True
        self.when[rows[broken]] = step

    def result(self, x: Tensor, threat: Threat) -> Attacked:
        """As ``Attacked``, budget checked."""
        threat.check(self.x, x)
        return Attacked(self.x, self.broken, self.loss, self.forwards, self.backwards, self.when)


def run_steps(
    model: Model,
    best: Best,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    threat: Threat,
    steps: int,
    rule: Rule,
    estimator: Estimator,
    loss: Loss,
) -> None:
    """One restart from ``start`` for the samples that still stand.

    A sample leaves the batch as soon as it is broken.
    """
    rows = best.standing()
    if not len(rows):
        return
    clean, labels, here, budget = x[rows], y[rows], start[rows], threat.select(rows)
    rule.select(rows)
    aim(loss, rows)
    with estimator.open(model) as opened:
        for k in range(steps + 1):
            if k < steps:
                gradient, value, logits = opened(here, labels, loss)
            else:
                logits = opened.logits(here)
                value = loss(logits, labels)
            broken = logits.argmax(1) != labels
            best.note(rows, here, value, broken, best.taken + k)
            if k == steps or bool(broken.all()):
                break
            stand = torch.nonzero(~broken).flatten()
            if len(stand) < len(rows):
                rows, clean, labels, here, gradient = (
                    rows[stand],
                    clean[stand],
                    labels[stand],
                    here[stand],
                    gradient[stand],
                )
                budget = budget.select(stand)
                value = value[stand]
                rule.select(stand)
                opened.select(stand)
                aim(loss, stand)
            here = budget.project(rule.step(k, here, gradient, value), clean)
        best.forwards += opened.forwards
        best.backwards += opened.backwards
    best.taken += steps


def walk(
    model: Model,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    threat: Threat,
    steps: int,
    rule: Rule,
    estimator: Estimator,
    loss: Loss,
) -> tuple[Tensor, Opened]:
    """The textbook loop: every sample takes every step; the last point, and what it cost.

    For adversarial training and ``climb``.
    """
    here = start
    with estimator.open(model) as opened:
        for k in range(steps):
            gradient, value, _ = opened(here, y, loss)
            here = threat.project(rule.step(k, here, gradient, value), x)
    return here, opened


def last_iterate(
    model: Model,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    threat: Threat,
    steps: int,
    rule: Rule,
    estimator: Estimator,
    loss: Loss,
) -> Attacked:
    """``walk``, its last point judged by one more pass of the model itself.

    For random models and textbook comparisons.
    """
    found, cost = walk(model, x, y, start, threat, steps, rule, estimator, loss)
    with torch.no_grad():
        logits = model(found)
    threat.check(found, x)
    broken = logits.argmax(1) != y
    return Attacked(
        found, broken, loss(logits, y), cost.forwards + len(x), cost.backwards, torch.full_like(y, -1)
    )
