"""Sparse-gradient regularization.

A small derivative of the class's probability along the sign of its own gradient.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spikeguard.arguments import checked_fields
from spikeguard.attacks import sapgd
from spikeguard.attacks.adaptive import AdaptiveAttack
from spikeguard.defenses.base import Defense, Hooks, SameDraws, Step, StudyRow, View
from spikeguard.defenses.crafting import crafting_mode
from spikeguard.gradients import SwapSurrogate
from spikeguard.networks.classifier import Classifier
from spikeguard.surrogates import Atan


@dataclass(frozen=True)
@checked_fields
class SR(Defense):
    """``L + weight mean ((f(x + h v) - f(x)) / h)^2``, ``f = sigmoid(z_y - z_k)``, k the best wrong class at
    x, ``v = sign(grad f)``.

    x is the view that is trained on; noise, where there is any, is the same in both passes. Liu et al., ICML
    2024.

    >>> sg.defenses.SR(weight=0.002)
    SR(weight=0.002, h=0.01)
    """

    idea: ClassVar[str] = "flat class probability along its gradient's sign"
    formula: ClassVar[str] = "L + w mean ((f(x + h v) - f(x)) / h)^2"
    source: ClassVar[str] = "Liu et al., ICML 2024"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd100-atan4-margin",
        "SA-PGD-100, Atan(4), margin loss",
        sapgd,
        {"steps": 100, "loss": "margin"},
        SwapSurrogate(Atan(4.0)),
        "It flattens a saturating probability along the sign of its own gradient near clean images: the "
        "margin does not saturate, another surrogate points elsewhere, and the start lies on the "
        "border.",
    )
    row: ClassVar[StudyRow] = StudyRow("SR")

    weight: float = 0.001
    """Weight of the squared directional derivative."""
    h: float = 0.01
    """Step of the finite difference."""

    def __post_init__(self) -> None:
        self._need(self.weight > 0, "weight", "above 0")
        self._need(self.h > 0, "h", "above 0")

    def start(self, net: Classifier) -> Hooks:
        return _SR(self)


def chance(logits: Tensor, y: Tensor, other: Tensor) -> Tensor:
    """``sigmoid(z_y - z_other)`` ``[N]``."""
    return torch.sigmoid((logits.gather(1, y[:, None]) - logits.gather(1, other[:, None])).squeeze(1))


def best_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """The wrong class with the highest logit, ``[N]``."""
    return logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1)


class _SR(Hooks):
    def __init__(self, settings: SR) -> None:
        self.settings, self.base, self.draws = settings, "", SameDraws()

    def complete(self, step: Step) -> None:
        self.base = step.main_view()
        self.draws.clear()
        x = step.views[self.base].x.detach().requires_grad_()
        with crafting_mode(step.net, "train", True):
            logits = step.net(x)
            (gradient,) = torch.autograd.grad(chance(logits, step.y, best_wrong(logits, step.y)).sum(), x)
        step.views["shifted"] = View(x.detach() + self.settings.h * gradient.sign(), 0.0, freeze_bn=True)

    def watch(self, net: Classifier, view: str) -> AbstractContextManager[object]:
        if view in (self.base, "shifted"):
            self.draws.align(net)
        return nullcontext()

    def penalty(self, step: Step) -> Tensor:
        here, there = step.scored(self.base), step.scored("shifted")
        other = best_wrong(here, step.y)
        rise = (chance(there, step.y, other) - chance(here, step.y, other)) / self.settings.h
        return self.settings.weight * rise.square().mean()
