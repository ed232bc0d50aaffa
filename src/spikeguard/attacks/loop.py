"""The loops that attacks share: which samples are not broken yet, what was found, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spikeguard.attacks.batch import Batch, border_start, over_pixels
from spikeguard.gradients import Estimator
from spikeguard.gradients.base import Opened
from spikeguard.losses import Loss, Objective, margin
from spikeguard.models import (
    Model,
    check_clean,
    eval_mode,
    is_stochastic,
    is_wrong,
    logits_of,
)
from spikeguard.random import draws
from spikeguard.wrapping.contact import steady_answers


@dataclass(frozen=True)
class Attacked:
    """Result of an attack on ``[N, ...]`` images.

    ``x``: for a broken sample the first input found that is misclassified, else the one of highest loss;
    float32 (float64 if the model computes in it), also for a model that is given float16 or bfloat16.
    ``broken``: ``[N]`` bool. ``loss``: ``[N]`` at ``x``. ``forwards`` and ``backwards`` count samples.
    ``when``: ``[N]``, the step at which a sample was first broken (0: at the start), -1 where it was not, or
    where the attack judges only its last point.

    >>> result = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=2)
    >>> result.x.shape, result.broken.shape, bool(((result.x - x).abs() <= 8 / 255 + 1e-6).all())
    (torch.Size([6, 1, 8, 8]), torch.Size([6]), True)
    """

    x: Tensor
    broken: Tensor
    loss: Tensor
    forwards: int
    backwards: int
    when: Tensor

    def __repr__(self) -> str:
        found = f"{int(self.broken.sum())} of {len(self.broken)} broken, x {list(self.x.shape)}"
        return f"Attacked({found}, {self.forwards} forwards, {self.backwards} backwards)"


class Rule(Protocol):
    """How a step follows from a gradient, with its state per sample."""

    def step(self, k: int, x: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        """The next point, before projection, from gradient and loss ``[N]`` at ``x``."""

    def select(self, rows: Tensor) -> None:
        """Keep these samples only."""


MakeRule = Callable[[Batch, int], Rule]
"""A fresh step rule for a batch and a number of steps."""
Begin = Callable[[int], tuple[Tensor, Rule]]
"""The start ``[N, ...]`` and a fresh step rule of a restart."""


def begin_at(start: Tensor, rule: Rule) -> Begin:
    """For attacks of one restart."""
    return lambda restart: (start, rule)


@dataclass(frozen=True)
class Ascent:
    """What a gradient attack does, its step rule aside.

    ``early_stop``: a sample is done once it is broken; without it all samples take all steps and only their
    last points are judged.
    """

    estimator: Estimator
    loss: Objective
    steps: int
    restarts: int = 1
    early_stop: bool = True


class Best:
    """The best point of every sample so far, and which samples are broken."""

    def __init__(self, batch: Batch, logits: Tensor, loss: Loss) -> None:
        check_clean(logits)
        self.x, self.loss = batch.x.clone(), loss(logits, batch.y)
        self.broken = is_wrong(logits, batch.y)
        self.when = torch.where(self.broken, 0, -1)
        self.forwards, self.backwards = len(batch), 0
        self.steps_before = 0  # steps of earlier restarts

    def standing(self) -> Tensor:
        """Rows that are not broken yet."""
        return torch.nonzero(~self.broken).flatten()

    def note(
        self, rows: Tensor, x: Tensor, loss: Tensor, broken: Tensor, step: int = -1, ties: bool = False
    ) -> None:
        """Take over points that break their sample or have a higher loss, found at ``step``.

        ``ties``: those of equal loss, too.
        """
        better = broken | (loss > self.loss[rows]) | (ties & (loss == self.loss[rows]))
        chosen = rows[better]
        self.x[chosen], self.loss[chosen] = x[better], loss[better]
        self.broken[rows[broken]] = True
        self.when[rows[broken]] = step

    def count(self, opened: Opened) -> None:
        """Add what an opened estimator cost."""
        self.forwards += opened.forwards
        self.backwards += opened.backwards

    def result(self, batch: Batch) -> Attacked:
        """As ``Attacked``; AttackError if a point is outside the budget."""
        batch.threat.check(self.x, batch.x)
        return Attacked(self.x, self.broken, self.loss, self.forwards, self.backwards, self.when)


def search(model: Model, batch: Batch, ascent: Ascent, begin: Begin, known: Tensor | None = None) -> Attacked:
    """All restarts of a gradient attack on the model in eval mode.

    ``known``: logits at the clean images of a model that is known to be deterministic. A stochastic model's
    samples never stop early: no single answer of it means that they are broken.
    """
    with eval_mode(model):
        stochastic = known is None and is_stochastic(model, *steady_answers(model, batch.x, batch.y))
        if ascent.early_stop and not stochastic:
            with torch.no_grad():
                best = Best(batch, logits_of(model, batch.x) if known is None else known, ascent.loss)
            for restart in range(ascent.restarts):
                run_steps(model, best, batch, ascent, *begin(restart))
            return best.result(batch)
        found = last_iterate(model, batch, ascent, *begin(0))
        for restart in range(1, ascent.restarts):
            found = _of_higher_loss(found, last_iterate(model, batch, ascent, *begin(restart)))
    return found


def search_from_border(
    who: str, model: Model, batch: Batch, ascent: Ascent, make: MakeRule, first: Tensor | None = None
) -> Attacked:
    """``search`` from ``border_start``, in the first restart from the points ``first`` if they are given.

    ``who``: the attack's name, part of the key of the starts.
    """
    seed = batch.seed

    def begin(restart: int) -> tuple[Tensor, Rule]:
        if first is not None and not restart:
            return batch.project(first), make(batch, ascent.steps)
        return border_start(batch, draws.key(seed, who, restart)), make(batch, ascent.steps)

    return search(model, batch, ascent, begin)


def run_steps(model: Model, best: Best, batch: Batch, ascent: Ascent, start: Tensor, rule: Rule) -> None:
    """One restart from ``start`` for the samples that are not broken; each leaves as soon as it is."""
    rows = best.standing()
    if not len(rows):
        return
    batch, here, loss = batch.select(rows), start[rows], ascent.loss.select(rows)
    rule.select(rows)
    with ascent.estimator.open(model) as opened:
        for k in range(ascent.steps):
            gradient, value, logits = opened(here, batch.y, loss)
            broken = is_wrong(logits, batch.y)
            best.note(rows, here, value, broken, best.steps_before + k)
            if bool(broken.all()):
                break
            if bool(broken.any()):
                stand = torch.nonzero(~broken).flatten()
                rows, batch, loss = rows[stand], batch.select(stand), loss.select(stand)
                here, gradient, value = here[stand], gradient[stand], value[stand]
                rule.select(stand)
                opened.select(stand)
            here = batch.project(rule.step(k, here, gradient, value))
        else:
            logits = opened.logits(here)
            broken = is_wrong(logits, batch.y)
            best.note(rows, here, loss(logits, batch.y), broken, best.steps_before + ascent.steps)
        best.count(opened)
    best.steps_before += ascent.steps


def take_all_steps(
    model: Model, batch: Batch, ascent: Ascent, start: Tensor, rule: Rule
) -> tuple[Tensor, Opened]:
    """The textbook loop: every sample takes every step. The last points, and the estimator with its cost.

    For adversarial training and for ``last_iterate``.
    """
    here = start
    with ascent.estimator.open(model) as opened:
        for k in range(ascent.steps):
            gradient, value, _ = opened(here, batch.y, ascent.loss)
            here = batch.project(rule.step(k, here, gradient, value))
    return here, opened


def last_iterate(model: Model, batch: Batch, ascent: Ascent, start: Tensor, rule: Rule) -> Attacked:
    """``take_all_steps``, its last points judged by one more forward pass of the model itself.

    For stochastic models and for comparisons with textbooks.
    """
    found, cost = take_all_steps(model, batch, ascent, start, rule)
    with torch.no_grad():
        logits = logits_of(model, found)
    batch.threat.check(found, batch.x)
    return Attacked(
        found,
        is_wrong(logits, batch.y),
        ascent.loss(logits, batch.y),
        cost.forwards + len(batch),
        cost.backwards,
        torch.full_like(batch.y, -1),
    )


def _of_higher_loss(a: Attacked, b: Attacked) -> Attacked:
    """Per sample the result of higher loss."""
    better = b.loss > a.loss
    x = torch.where(over_pixels(better, a.x), b.x, a.x)
    broken, loss = torch.where(better, b.broken, a.broken), torch.where(better, b.loss, a.loss)
    return Attacked(x, broken, loss, a.forwards + b.forwards, a.backwards + b.backwards, a.when)


Propose = Callable[[Batch, Tensor, int], Tensor]
"""Points to query ``[N, ...]``, from the batch, its best points so far and the number of the query."""


@dataclass(frozen=True)
class Keep:
    """Which points a search by queries keeps, beside those that raise the margin or break their sample.

    ``start``: the first proposal replaces the clean image, whatever its margin. ``ties``: points of equal
    margin, so that a search may cross a plateau. ``first``: points ``[N, ...]`` that are queried before all
    proposals; the search begins there if their margin is higher.
    """

    start: bool = False
    ties: bool = False
    first: Tensor | None = None


def search_by_queries(
    model: Model, batch: Batch, queries: int, propose: Propose, keep: Keep | None = None
) -> Attacked:
    """Query proposed points, projected on the budget; keep those that raise the margin. No gradients.

    A sample leaves once it is broken. A stochastic model is judged by one draw a query.
    """
    keep = keep or Keep()
    with eval_mode(model), torch.no_grad():
        steady_answers(model, batch.x, batch.y)
        best = Best(batch, logits_of(model, batch.x), margin)

        def note(rows: Tensor, candidate: Tensor, step: int) -> None:
            y = batch.y[rows]
            logits = logits_of(model, candidate)
            best.forwards += len(rows)
            best.note(rows, candidate, margin(logits, y), is_wrong(logits, y), step, keep.ties)

        if keep.first is not None and len(rows := best.standing()):
            note(rows, batch.select(rows).project(keep.first[rows]), 0)
        for query in range(queries):
            rows = best.standing()
            if not len(rows):
                break
            part = batch.select(rows)
            candidate = part.project(propose(part, best.x[rows], query))
            if query == 0 and keep.start:
                best.loss[rows] = -math.inf
            note(rows, candidate, query + 1)
    return best.result(batch)
