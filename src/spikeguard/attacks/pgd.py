"""Attacks that step along the gradient, by its sign under Linf.

FGSM, its family's half-strength random version, BIM, PGD, MI-FGSM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeguard.attacks._loop import (
    Attacked,
    Best,
    Make,
    Rule,
    border_start,
    last_iterate,
    random_start,
    run_steps,
    sample_ids,
)
from spikeguard.errors import UserError
from spikeguard.gradients import Estimator, Own
from spikeguard.losses import Loss, by_name
from spikeguard.models import Model, check_logits, eval_mode, is_stochastic
from spikeguard.random import draws
from spikeguard.threat import Linf, Threat, check_images

Begin = Callable[[int], tuple[Tensor, Rule]]


@dataclass
class SignStep:
    """A step of ``size`` ``[N, 1, ...]`` along the gradient.

    With ``momentum``, along ``m <- momentum m + g / mean|g|``.
    """

    threat: Threat
    size: Tensor
    momentum: float = 0.0
    m: Tensor | None = None

    def step(self, k: int, x: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        if self.momentum:
            scaled = gradient / (gradient.abs().flatten(1).mean(1).view_as(self.size) + 1e-12)
            gradient = self.m = scaled if self.m is None else self.momentum * self.m + scaled
        return x + self.threat.steepest(gradient, self.size)

    def select(self, rows: Tensor) -> None:
        self.size = self.size[rows]
        self.m = None if self.m is None else self.m[rows]


def default_step(eps: Tensor, steps: int, step_size: float | None) -> Tensor:
    """The step size per sample: as given, else ``max(2.5 eps / steps, eps / 16)``."""
    return (
        torch.maximum(2.5 * eps / steps, eps / 16) if step_size is None else torch.full_like(eps, step_size)
    )


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 5,
    start: bool = True,
    first: Tensor | None = None,
    momentum: float = 0.0,
    loss: str | Loss = "ce",
    gradient: Estimator | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    early_stop: bool = True,
) -> Attacked:
    """Projected gradient ascent on ``x`` ``[N, C, H, W]`` in [0, 1] with labels ``y`` ``[N]``. Madry et al.,
    ICLR 2018.

    ``step_size`` None is ``max(2.5 eps / steps, eps / 16)``. ``start``: from a random point of the ball, else
    from x; ``first``: from these points in the first restart. ``momentum`` 1 is MI-FGSM (Dong et al., CVPR
    2018). ``index``: the samples' numbers; starts depend on them. ``early_stop`` False takes all steps with
    all samples and judges the last point only; so does a model that answers twice differently. Raises
    AttackError without a gradient or outside the budget, UserError on bad images.
    """
    check_images(x, y)
    if steps < 1 or restarts < 1:
        raise UserError(f"pgd: steps = {steps} and restarts = {restarts} must be at least 1")
    if step_size is not None and not step_size >= 0:
        raise UserError(f"pgd: step_size = {step_size} must be 0 or more")
    index, objective, estimator = sample_ids(index, x), by_name(loss), gradient or Own()
    x, eps = x.detach(), threat.per_sample(x)
    size = default_step(eps, steps, step_size)

    def begin(restart: int) -> tuple[Tensor, Rule]:
        drawn = random_start(x, threat, index, seed, restart) if start else x
        return drawn if first is None or restart else threat.project(first, x), SignStep(
            threat, size, momentum
        )

    return search(
        model, x, y, threat, steps, restarts if start else 1, begin, estimator, objective, early_stop
    )


def search_from_border(
    who: str,
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    steps: int,
    restarts: int,
    rule: Make,
    estimator: Estimator,
    loss: str | Loss,
    seed: int,
    index: Tensor | None,
    first: Tensor | None = None,
) -> Attacked:
    """``search`` from ``scaled_noise`` (from ``first`` in the first restart).

    Arguments checked in the name of ``who``.
    """
    check_images(x, y)
    if steps < 1 or restarts < 1:
        raise UserError(f"{who}: steps = {steps} and restarts = {restarts} must be at least 1")
    index, objective, x = sample_ids(index, x), by_name(loss), x.detach()

    def begin(restart: int) -> tuple[Tensor, Rule]:
        drawn = border_start(x, threat, index, draws.key(seed, who, restart))
        return drawn if first is None or restart else threat.project(first, x), rule(x, threat, steps)

    return search(model, x, y, threat, steps, restarts, begin, estimator, objective)


def search(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    steps: int,
    restarts: int,
    begin: Begin,
    estimator: Estimator,
    objective: Loss,
    early_stop: bool = True,
    known: Tensor | None = None,
) -> Attacked:
    """Restarts of one gradient attack on the model in eval mode; ``begin(restart)`` gives the start and a
    fresh step rule.

    ``known``: logits at ``x`` of a model that is known to answer alike every time.
    """
    with eval_mode(model):
        random = known is None and is_stochastic(model, *check_logits(model, x, y))
        if early_stop and not random:
            with torch.no_grad():
                best = Best(x, y, model(x) if known is None else known, objective)
            for restart in range(restarts):
                first, rule = begin(restart)
                run_steps(model, best, x, y, first, threat, steps, rule, estimator, objective)
            return best.result(x, threat)
        found: Attacked | None = None
        for restart in range(restarts):
            first, rule = begin(restart)
            other = last_iterate(model, x, y, first, threat, steps, rule, estimator, objective)
            found = other if found is None else _higher(found, other)
    assert found is not None
    return found


def _higher(a: Attacked, b: Attacked) -> Attacked:
    """Per sample the result of higher loss."""
    better = b.loss > a.loss
    x = torch.where(better.view(-1, *[1] * (a.x.dim() - 1)), b.x, a.x)
    broken, loss = torch.where(better, b.broken, a.broken), torch.where(better, b.loss, a.loss)
    return Attacked(x, broken, loss, a.forwards + b.forwards, a.backwards + b.backwards, a.when)


def bim(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 10,
    step_size: float | None = None,
    loss: str | Loss = "ce",
    gradient: Estimator | None = None,
    early_stop: bool = True,
) -> Attacked:
    """PGD without a random start. Kurakin et al., 2017."""
    return pgd(
        model,
        x,
        y,
        threat,
        steps=steps,
        step_size=step_size,
        start=False,
        loss=loss,
        gradient=gradient,
        early_stop=early_stop,
    )


def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    loss: str | Loss = "ce",
    gradient: Estimator | None = None,
) -> Attacked:
    """One step of size eps along the sign. Goodfellow et al., ICLR 2015.

    Samples that are wrong at ``x`` are broken there.
    """
    check_images(x, y)
    size = threat.per_sample(x)
    return search(
        model,
        x.detach(),
        y,
        threat,
        1,
        1,
        lambda _: (x.detach(), SignStep(threat, size)),
        gradient or Own(),
        by_name(loss),
    )


def rfgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    loss: str | Loss = "ce",
    gradient: Estimator | None = None,
    seed: int = 0,
    index: Tensor | None = None,
) -> Attacked:
    """Half-strength FGSM as papers on robust spiking networks use it: a random sign step of eps/2, then a
    gradient step of eps/2.

    For their tables only; it is weaker than ``fgsm``. Linf only.
    """
    check_images(x, y)
    if not isinstance(threat, Linf):
        raise UserError(f"rfgsm is an attack under Linf, not under {type(threat).__name__}")
    x, half = x.detach(), threat.per_sample(x) / 2
    sign = (
        (draws.uniform(draws.key(seed, "rfgsm"), sample_ids(index, x).to(x.device), x[0].numel()) - 0.5)
        .sign()
        .view_as(x)
    )
    first = (x + half * sign.to(x.dtype)).clamp(0.0, 1.0)
    return search(
        model, x, y, threat, 1, 1, lambda _: (first, SignStep(threat, half)), gradient or Own(), by_name(loss)
    )
