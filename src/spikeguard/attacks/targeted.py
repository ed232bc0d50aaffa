"""Attacks towards one wrong class after another, by any step rule.

MTPGD (Gowal et al., 2019), APGD-T (Croce and Hein, 2020), SA-PGD.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from spikeguard.attacks._loop import Attacked, Best, Make, Rule, border_start, sample_ids
from spikeguard.attacks.apgd import apgd_rule
from spikeguard.attacks.pgd import SignStep, default_step, search
from spikeguard.attacks.sapgd import sapgd_rule
from spikeguard.errors import UserError
from spikeguard.gradients import ASSG, Estimator, Own
from spikeguard.losses import Targeted, margin
from spikeguard.models import Model, check_logits, eval_mode, is_stochastic
from spikeguard.random import draws
from spikeguard.threat import Threat, check_images

RULES: dict[str, Make] = {
    "pgd": lambda x, threat, steps: SignStep(threat, default_step(threat.per_sample(x), steps, None)),
    "apgd": apgd_rule,
    "sapgd": sapgd_rule,
}


def targeted(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    rule: str = "apgd",
    steps: int = 100,
    targets: int = 9,
    loss: Literal["dlr", "margin"] = "margin",
    gradient: Estimator | None = None,
    seed: int = 0,
    index: Tensor | None = None,
) -> Attacked:
    """The step rule 'pgd', 'apgd' or 'sapgd' towards the ``targets`` highest wrong classes at ``x``, one by
    one; a broken sample goes no further.

    ``gradient`` None is the model's own, for 'sapgd' ``assg()``. ``loss`` of the result is the margin.
    UserError if there are no classes for it ('dlr' needs four).
    """
    check_images(x, y)
    if steps < 1 or targets < 1 or loss not in ("dlr", "margin") or rule not in RULES:
        allowed = f"'dlr' or 'margin', rule = {rule!r} one of {', '.join(RULES)}"
        raise UserError(
            f"targeted: steps = {steps} and targets = {targets} must be at least 1, loss = {loss!r} {allowed}"
        )
    estimator: Estimator = gradient or (ASSG() if rule == "sapgd" else Own())
    index, x = sample_ids(index, x), x.detach()
    with eval_mode(model):
        random = is_stochastic(model, *check_logits(model, x, y))
        with torch.no_grad():
            logits = model(x)
            best = Best(x, y, logits, margin)
    others = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, : logits.shape[1] - 1]
    for rank in range(min(targets, others.shape[1])):
        rows = torch.arange(len(x), device=x.device) if random else best.standing()
        if not len(rows):
            break
        near, budget = x[rows], threat.select(rows)
        start = border_start(near, budget, index[rows.cpu()], draws.key(seed, f"{rule} targeted", rank))
        aimed, steps_by = Targeted(loss, others[rows, rank]), RULES[rule](near, budget, steps)

        def begin(_: int, start: Tensor = start, rule: Rule = steps_by) -> tuple[Tensor, Rule]:
            return start, rule

        got = search(
            model,
            near,
            y[rows],
            budget,
            steps,
            1,
            begin,
            estimator,
            aimed,
            known=None if random else logits[rows],
        )
        with eval_mode(model), torch.no_grad():
            value = margin(model(got.x), y[rows])
        best.note(rows, got.x, value, got.broken & (value > best.loss[rows]) if random else got.broken)
        best.when[rows[got.broken]] = got.when[got.broken]
        best.forwards, best.backwards = (
            best.forwards + got.forwards + len(rows),
            best.backwards + got.backwards,
        )
    return best.result(x, threat)


def apgd_targeted(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 100,
    targets: int = 9,
    loss: Literal["dlr", "margin"] = "dlr",
    gradient: Estimator | None = None,
    seed: int = 0,
    index: Tensor | None = None,
) -> Attacked:
    """APGD-T: ``targeted`` with APGD's steps and the targeted DLR loss."""
    return targeted(
        model,
        x,
        y,
        threat,
        steps=steps,
        targets=targets,
        loss=loss,
        gradient=gradient,
        seed=seed,
        index=index,
    )
