"""APGD: PGD with momentum whose step size falls when progress stalls. Croce and Hein, ICML 2020.

    z = P(x_k + eta sign g)
    x_{k+1} = P(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1}))        (0.75 is 1 in the first step)

eta starts at 2 eps. At a checkpoint a sample's eta is halved, and the sample goes on from its best point, if
its loss rose in at most 75 % of the steps since the last one, or if its best loss did not rise and eta was
not halved at the last one. Under L1 the steps are those of ``sparse``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeguard.attacks.batch import Batch, HighestPoint, PerSample, check_counts
from spikeguard.attacks.loop import Ascent, Attacked, search_from_border
from spikeguard.attacks.sparse import unless_l1
from spikeguard.border import measures
from spikeguard.gradients import Estimator, Own
from spikeguard.losses import Loss, objective
from spikeguard.models import Model
from spikeguard.threat import Threat

RISING = 0.75


def checkpoints(steps: int) -> set[int]:
    """The steps after which APGD decides on the step size and SA-PGD halves it.

    After 0.22 n, then at gaps that shrink by 0.03 n down to 0.06 n, rounded as in the authors' code.
    """
    gap, shrink, smallest = max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    at, found = gap, set()
    while at < steps:
        found.add(at)
        gap = max(gap - shrink, smallest)
        at += gap
    return found


class MomentumStep(PerSample):
    """The rule above."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch, self.checkpoints = batch, checkpoints(steps)
        self.eta = 2 * batch.threat.per_sample(batch.x)
        self.steps_since = 0
        self.best: HighestPoint | None = None

    def step(self, k: int, x: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        """The next point."""
        if self.best is None:
            self.best, self.previous, self.last_loss, self.best_at_check = (
                HighestPoint(x, gradient, loss),
                x,
                loss,
                loss,
            )
            self.rises, self.halved = torch.zeros_like(loss), torch.zeros_like(loss) + 1
        else:
            self.steps_since += 1
            self.rises = self.rises + (loss > self.last_loss)
            self.best.update(x, gradient, loss)
            self.last_loss = loss
            if k in self.checkpoints:
                x, gradient = self._check(self.best, x, gradient)
        z = self.batch.project(x + self.batch.threat.steepest(gradient, self.eta))
        share = 0.75 if k else 1.0
        following = self.batch.project(x + share * (z - x) + (1 - share) * (x - self.previous))
        self.previous = x
        return following

    def _check(self, best: HighestPoint, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        stalled = (self.rises <= RISING * self.steps_since) | (
            (self.halved == 0) & (best.loss <= self.best_at_check)
        )
        self.halved, self.best_at_check = stalled.to(best.loss), best.loss
        self.rises, self.steps_since = torch.zeros_like(best.loss), 0
        back = stalled.view_as(self.eta)
        self.eta = torch.where(back, self.eta / 2, self.eta)
        return torch.where(back, best.x, x), torch.where(back, best.gradient, gradient)


apgd_rule = unless_l1(MomentumStep)


@measures
def apgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 100,
    restarts: int = 1,
    first: Tensor | None = None,
    loss: str | Loss = "ce",
    gradient: Estimator | None = None,
    seed: int = 0,
    index: Tensor | None = None,
) -> Attacked:
    """APGD: PGD with momentum and a step size that adapts to progress. Croce and Hein, ICML 2020.

    ``x``: floats ``[N, C, H, W]`` in [0, 1]; ``y``: int64 ``[N]``. Each restart begins at a random point on
    the border of the ball, the first one at the points ``first`` if given. The rest and the errors as in
    ``pgd``.

    >>> found = sg.apgd(net, x, y, sg.L2(0.5), steps=5)
    >>> bool((sg.L2(0.5).length(found.x - x) <= 0.5 + 1e-5).all())
    True
    """
    batch = Batch.of(x, y, threat, index, seed)
    check_counts("apgd", steps=steps, restarts=restarts)
    ascent = Ascent(gradient or Own(), objective(loss), steps, restarts)
    return search_from_border("apgd", model, batch, ascent, apgd_rule, first)
