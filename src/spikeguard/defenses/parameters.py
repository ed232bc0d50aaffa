"""Defenses that act on parameters and their gradients.

Orthogonal retraction (RAT) and deflation (DSD).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeguard.arguments import checked_fields
from spikeguard.attacks import sapgd, targeted
from spikeguard.attacks.adaptive import AdaptiveAttack
from spikeguard.defenses.base import Defense, Hooks, Moment, Step, StudyRow
from spikeguard.gradients import ASSG
from spikeguard.networks.classifier import Classifier
from spikeguard.networks.wrn import ConvexCombination
from spikeguard.random import draws
from spikeguard.surrogates import Triangle

ROWS, MANY = 0.3, 200  # share of the rows that the retraction takes of a linear layer with many


def matrices(net: nn.Module) -> Iterator[nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            yield module


@dataclass(frozen=True)
@checked_fields
class RAT(Defense):
    """After every step ``W <- (1 + beta) W - beta W W^T W``, which moves singular values towards 1.

    With ``AT`` it is the regime RAT.
    Of linear layers with 200 rows and more, 30 % of the rows. Learned convex combinations (wrn16) go
    back onto the simplex. The published recipe trains without weight decay then. Ding et al., NeurIPS 2022.

    >>> sg.RAT(beta=1.0)
    Traceback (most recent call last):
    spikeguard.errors.UserError: RAT: beta = 1.0 must be in (0, 0.5)
    """

    idea: ClassVar[str] = "singular values towards 1"
    formula: ClassVar[str] = "W <- (1 + beta) W - beta W W^T W after every step"
    source: ClassVar[str] = "Ding et al., NeurIPS 2022"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd100x3-assg-triangle1.6",
        "SA-PGD-100 x 3, ASSG triangle 1.6",
        sapgd,
        {"steps": 100, "loss": "ce", "restarts": 3},
        ASSG(1.6, Triangle()),
        "Layers with singular values near 1 neither shrink nor blow up a gradient: a narrow surrogate, "
        "exact near the threshold, reaches the input.",
    )
    row: ClassVar[StudyRow] = StudyRow("RAT")

    beta: float = 5e-4
    """Size of the step towards singular values of 1."""

    def __post_init__(self) -> None:
        self._need(0 < self.beta < 0.5, "beta", "in (0, 0.5)")

    def start(self, net: Classifier) -> Hooks:
        return _RAT(self)


class _RAT(Hooks):
    def __init__(self, settings: RAT) -> None:
        self.settings = settings

    def after(self, step: Step) -> None:
        retract(step, self.settings.beta)


@torch.no_grad()
def retract(step: Moment, beta: float) -> None:
    """RAT's step after that of the optimizer, on the convolutions and linear layers of any network."""
    for number, module in enumerate(matrices(step.net)):
        w = module.weight.flatten(1).clone()
        rows = slice(None)
        if isinstance(module, nn.Linear) and len(w) >= MANY:
            order = torch.randperm(len(w), generator=draws.generator(step.draw("rows", number)))
            rows = order[: int(ROWS * len(w))].to(w.device)  # type: ignore[assignment]
        part = w[rows]
        w[rows] = (1 + beta) * part - beta * (part @ part.T) @ part
        module.weight.copy_(w.view_as(module.weight))
    for join in step.net.modules():
        if isinstance(join, ConvexCombination):
            join.weight.copy_(onto_simplex(join.weight))


def onto_simplex(v: Tensor) -> Tensor:
    """The nearest point to ``v`` ``[n]`` with entries of at least 0 that sum to 1."""
    ordered = v.sort(descending=True).values
    excess = (ordered.cumsum(0) - 1) / torch.arange(1, len(v) + 1, device=v.device)
    return (v - excess[int((ordered > excess).sum()) - 1]).clamp(min=0)


@dataclass(frozen=True)
@checked_fields
class DSD(Defense):
    """Dominant singular deflation: remove the first singular component of every gradient matrix.

    It happens before the optimizer's step. ``iterations`` of power iteration find the component (the
    published method takes a whole decomposition). ICLR 2026.

    >>> sg.defenses.DSD(iterations=4)
    DSD(iterations=4)
    """

    idea: ClassVar[str] = "gradients without their dominant direction"
    formula: ClassVar[str] = "G <- G - s1 u1 v1^T"
    source: ClassVar[str] = "ICLR 2026"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd20-assg-targeted9",
        "SA-PGD-20, ASSG, 9 target classes",
        targeted,
        {"rule": "sapgd", "steps": 20, "targets": 9, "loss": "margin"},
        ASSG(),
        "What training removed is one dominant direction; a direction for every wrong class in turn "
        "needs none that dominates.",
    )
    row: ClassVar[StudyRow] = StudyRow("DSD")

    iterations: int = 2
    """Steps of the power iteration that finds the component."""

    def __post_init__(self) -> None:
        self._need(self.iterations >= 1, "iterations", "at least 1")

    def start(self, net: Classifier) -> Hooks:
        return _DSD(self)


class _DSD(Hooks):
    def __init__(self, settings: DSD) -> None:
        self.settings = settings

    @torch.no_grad()
    def gradients(self, net: Classifier) -> None:
        for parameter in net.parameters():
            if parameter.grad is not None and parameter.dim() >= 2:
                g = parameter.grad.reshape(len(parameter), -1)
                parameter.grad.copy_(deflated(g, self.settings.iterations).view_as(parameter.grad))


def deflated(g: Tensor, iterations: int) -> Tensor:
    """``g`` less its first singular component, found by power iteration from the longest row."""
    v = g[int(g.norm(dim=1).argmax())]
    for _ in range(iterations):
        v = F.normalize(g.T @ F.normalize(g @ v, dim=0), dim=0)
    u = F.normalize(g @ v, dim=0)
    return g - torch.outer(u, g.T @ u)
