"""Attacks toward one wrong class after another, by any step rule.

MTPGD (Gowal et al., 2019), APGD-T (Croce and Hein, ICML 2020), SA-PGD.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from spikeguard.attacks.apgd import apgd_rule
from spikeguard.attacks.batch import Batch, border_start, check_counts
from spikeguard.attacks.loop import Ascent, Attacked, Best, MakeRule, Rule, begin_at, search
from spikeguard.attacks.pgd import SignStep, default_step
from spikeguard.attacks.sapgd import sapgd_rule
from spikeguard.border import measures
from spikeguard.errors import UserError
from spikeguard.gradients import ASSG, Estimator, Own
from spikeguard.losses import Targeted, margin, wrong_classes
from spikeguard.models import Model, eval_mode, is_stochastic, logits_of
from spikeguard.random import draws
from spikeguard.threat import Threat
from spikeguard.wrapping.contact import steady_answers


def _pgd_rule(batch: Batch, steps: int) -> Rule:
    return SignStep(batch.threat, default_step(batch.threat.per_sample(batch.x), steps, None))


RULES: dict[str, MakeRule] = {"pgd": _pgd_rule, "apgd": apgd_rule, "sapgd": sapgd_rule}
"""Step rules by name."""


@measures
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
    """Gradient ascent toward the highest wrong classes, one after another. Gowal et al., 2019.

    ``x``: floats ``[N, C, H, W]`` in [0, 1]; ``y``: int64 ``[N]``. ``rule``: the step rule, 'pgd', 'apgd' or
    'sapgd'. ``targets``: how many classes, ranked by their logit at ``x``; a broken sample stops.
    ``gradient`` None is the model's own, for 'sapgd' ``gradients.ASSG()``. ``loss`` of the result is the
    margin. UserError if the model has too few classes for the loss ('dlr' needs four); other errors as in
    ``pgd``.

    >>> found = sg.targeted(net, x, y, sg.Linf(8 / 255), rule="pgd", steps=3, targets=2)
    >>> found.broken.dtype
    torch.bool
    """
    batch = Batch.of(x, y, threat, index, seed)
    check_counts("targeted", steps=steps, targets=targets)
    if rule not in RULES:
        raise UserError(f"targeted: rule = {rule!r} must be one of {', '.join(RULES)}")
    estimator: Estimator = gradient or (ASSG() if rule == "sapgd" else Own())
    with eval_mode(model):
        stochastic = is_stochastic(model, *steady_answers(model, batch.x, y))
        with torch.no_grad():
            logits = logits_of(model, batch.x)
            best = Best(batch, logits, margin)
    classes = wrong_classes(logits, y)
    for rank in range(min(targets, classes.shape[1])):
        rows = torch.arange(len(batch), device=batch.x.device) if stochastic else best.standing()
        if not len(rows):
            break
        part = batch.select(rows)
        ascent = Ascent(estimator, Targeted(loss, classes[rows, rank]), steps)
        start = border_start(part, draws.key(seed, f"{rule} targeted", rank))
        begin = begin_at(start, RULES[rule](part, steps))
        found = search(model, part, ascent, begin, None if stochastic else logits[rows])
        with eval_mode(model), torch.no_grad():
            value = margin(logits_of(model, found.x), part.y)
        best.note(
            rows, found.x, value, found.broken & (value > best.loss[rows]) if stochastic else found.broken
        )
        best.when[rows[found.broken]] = found.when[found.broken]
        best.forwards += found.forwards + len(rows)
        best.backwards += found.backwards
    return best.result(batch)


@measures
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
    """APGD-T: APGD with the targeted DLR loss toward the highest wrong classes. Croce and Hein, ICML 2020.

    ``targeted`` with the rule 'apgd'; arguments and errors as there.

    >>> found = sg.apgd_targeted(net, x, y, sg.Linf(8 / 255), steps=3, targets=2)
    >>> found.loss.shape
    torch.Size([6])
    """
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
