"""Controls on an audit's result: are there gradients where images survived, or where others broke them?"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from spikeguard import attacks
from spikeguard.auditing import panel
from spikeguard.auditing.checks import gradient
from spikeguard.auditing.member import BLACK, LOCAL
from spikeguard.auditing.panel import FEW_PIXELS, OTHERS, broken_by, subset
from spikeguard.auditing.state import State
from spikeguard.auditing.task import BROKEN, Task
from spikeguard.gradients import BPDA, Estimator, Own
from spikeguard.models import eval_mode
from spikeguard.records.schema import SecondAttack, Settings
from spikeguard.stats import share_above
from spikeguard.surrogates import Atan

ENOUGH = 3
"""Images that only black-box attacks break, from which on it is an error."""


def survivors_with_gradient(task: Task, state: State) -> dict[str, float]:
    """By estimator, the share of up to 100 surviving samples that have a gradient at the best point found."""
    rows = torch.nonzero(state.right > BROKEN).flatten()[:100]
    if not len(rows):
        return {}
    shares = {}
    with eval_mode(task.model):
        for name, estimator in zip(("own", "straight-through", "bpda"), (Own(), *OTHERS), strict=True):
            g = gradient(task.model, estimator, state.found[rows], task.y[rows])
            shares[name] = 0.0 if g is None else float((g.flatten(1).abs().amax(1) > 0).float().mean())
    return shares


def only_black_box(task: Task, state: State) -> Tensor:
    """Rows that black-box attacks broke and gradients did not.

    What the local search breaks counts on neither side: gradients brought it near, but it follows none.
    """
    broken = (state.by_family <= BROKEN * (state.clean > 0)) & (state.first_by >= 0)
    black = torch.tensor([f in BLACK for f in task.families], device=task.x.device)
    local = torch.tensor([f == LOCAL for f in task.families], device=task.x.device)
    return torch.nonzero(broken[black].any(0) & ~broken[~black & ~local].any(0)).flatten()


def second_attack(task: Task, state: State) -> SecondAttack:
    """Attack the samples that only black-box attacks broke once more, by the strongest gradients.

    Only what they leave again says that gradients are masked. A member that starts at the best point of the
    others stands on their gradients: it is no black-box attack here.
    """
    rows = only_black_box(task, state)
    if not len(rows) or task.x[0].numel() < FEW_PIXELS:
        return SecondAttack(len(rows), len(task.x))
    small = subset(task, rows)
    left = torch.ones_like(rows, dtype=torch.bool)
    strongest: list[Estimator] = [BPDA(Atan(4.0)), *panel.LADDER[:-1]]
    for estimator, loss in product(strongest, ("margin", "ce")):
        if int(left.sum()) < ENOUGH:
            break
        settings: Settings = {"steps": 100, "restarts": 1, "loss": loss}
        left &= ~broken_by(small, small.threat, attacks.sapgd, settings, estimator)
    count = int(left.sum())
    return SecondAttack(len(rows), len(task.x), count, share_above(count, len(task.x)))
