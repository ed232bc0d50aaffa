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

from spikeguard.attacks._loop import Attacked, checkpoints, remember
from spikeguard.attacks.pgd import search_from_border
from spikeguard.attacks.sparse import unless_l1
from spikeguard.gradients import Estimator, Own
from spikeguard.losses import Loss
from spikeguard.models import Model
from spikeguard.threat import Threat

RISING = 0.75


class MomentumStep:
    """The rule above, a state per sample."""

    def __init__(self, clean: Tensor, threat: Threat, steps: int) -> None:
        self.clean, self.threat, self.halve = clean, threat, checkpoints(steps)
        self.eta = 2 * threat.per_sample(clean)
        self.since = 0
        self.held: dict[str, Tensor] = {}

    def step(self, k: int, x: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        if k == 0:
            none = torch.zeros_like(loss)
            self.held = {
                "before": x,
                "best": x,
                "gradient": gradient,
                "top": loss,
                "last": loss,
                "rises": none,
                "checked": loss,
                "halved": none + 1,
            }
        h = self.held
        if k:
            self.since += 1
            h["rises"] = h["rises"] + (loss > h["last"])
            remember(h, x, gradient, loss)
            h["last"] = loss
            if k in self.halve:
                x, gradient = self._check(x, gradient)
        z = self._project(x + self.threat.steepest(gradient, self.eta))
        share = 0.75 if k else 1.0
        following = self._project(x + share * (z - x) + (1 - share) * (x - h["before"]))
        h["before"] = x
        return following

    def _check(self, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        h = self.held
        stalled = (h["rises"] <= RISING * self.since) | ((h["halved"] == 0) & (h["top"] <= h["checked"]))
        h["halved"], h["checked"], h["rises"], self.since = (
            stalled.to(h["top"]),
            h["top"],
            torch.zeros_like(h["top"]),
            0,
        )
        back = stalled.view_as(self.eta)
        self.eta = torch.where(back, self.eta / 2, self.eta)
        return torch.where(back, h["best"], x), torch.where(back, h["gradient"], gradient)

    def _project(self, x: Tensor) -> Tensor:
        return self.threat.project(x, self.clean)

    def select(self, rows: Tensor) -> None:
        self.clean, self.threat, self.eta = self.clean[rows], self.threat.select(rows), self.eta[rows]
        self.held = {name: value[rows] for name, value in self.held.items()}


apgd_rule = unless_l1(MomentumStep)


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
    """APGD on ``x`` ``[N, C, H, W]`` in [0, 1] with labels ``y``; ``loss`` 'ce', 'dlr' or 'margin'.

    The rest as in ``pgd``.
    """
    return search_from_border(
        "apgd", model, x, y, threat, steps, restarts, apgd_rule, gradient or Own(), loss, seed, index, first
    )
