"""SA-PGD: steps scaled per pixel by running moments of the gradient, step size halved at checkpoints. arXiv
2512.22522.

    m <- 0.5 m + g / mean|g|,   v <- 0.8 v + g^2 / mean(g^2),   x <- P(x + clip(eta m / sqrt(v), -eta, eta))

Without its 0.5 and 0.8 at the first step; eta starts at eps and is halved after 0.22 n steps, then at gaps
shrinking by 0.03 n down to 0.06 n. Meant for the estimator ``assg``. A rule for boxes: under L1, where
l1-APGD's steps along the same gradient find far more, they are taken instead (``sparse``).
"""

from __future__ import annotations

from torch import Tensor

from spikeguard.attacks._loop import Attacked, checkpoints
from spikeguard.attacks.pgd import search_from_border
from spikeguard.attacks.sparse import unless_l1
from spikeguard.gradients import ASSG, Estimator
from spikeguard.losses import Loss
from spikeguard.models import Model
from spikeguard.threat import Threat


class AdaptiveStep:
    """The rule above; a sample without any gradient stays where it is."""

    def __init__(self, clean: Tensor, threat: Threat, steps: int) -> None:
        self.threat, self.eta, self.halve = threat, threat.per_sample(clean), checkpoints(steps)
        self.m: Tensor | None = None
        self.v: Tensor | None = None

    def step(self, k: int, x: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        if k in self.halve:
            self.eta = self.eta / 2
        size = gradient.abs().flatten(1).mean(1).clamp(min=1e-30).view_as(self.eta)
        scaled = gradient / size
        square = scaled**2
        square = square / square.flatten(1).mean(1).clamp(min=1e-30).view_as(self.eta)
        self.m = scaled if self.m is None else 0.5 * self.m + scaled
        self.v = square if self.v is None else 0.8 * self.v + square
        return x + self.threat.along(self.m / (self.v.sqrt() + 1e-12), self.eta)

    def select(self, rows: Tensor) -> None:
        self.eta = self.eta[rows]
        self.m = None if self.m is None else self.m[rows]
        self.v = None if self.v is None else self.v[rows]


sapgd_rule = unless_l1(AdaptiveStep)


def sapgd(
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
    """SA-PGD on ``x`` ``[N, C, H, W]`` in [0, 1] with labels ``y``; ``gradient`` None is ``assg()``.

    The rest as in ``pgd``.
    """
    return search_from_border(
        "sapgd",
        model,
        x,
        y,
        threat,
        steps,
        restarts,
        sapgd_rule,
        gradient or ASSG(),
        loss,
        seed,
        index,
        first,
    )
