"""Adversarial training: the loss is taken at inputs that PGD found a moment ago. Madry et al., ICLR 2018."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spikeguard.attacks.ascent import at_rest, random_start, walk
from spikeguard.attacks.pgd import SignStep, default_step
from spikeguard.defenses.base import Defense, Hooks, View
from spikeguard.errors import UserError
from spikeguard.gradients import Own
from spikeguard.losses import ce
from spikeguard.networks.classifier import Classifier
from spikeguard.threat import Linf


@dataclass(frozen=True)
class AT(Defense):
    """PGD on the batch, network in eval mode. ``clean_share`` of the loss stays on the clean images.

    ``step_size`` None is ``max(2.5 eps / steps, eps / 16)``; the usual recipe for spiking networks is eps 2/255, 2 steps of 1/255.
    """

    adaptive: ClassVar[str] = "SA-PGD-100 ASSG atan 0.435 ce"  # crafted by its own surrogate, it may hide from that one

    eps: float = 8 / 255
    steps: int = 2
    step_size: float | None = None
    random_start: bool = True
    clean_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1:
            raise UserError(f"AT: eps = {self.eps} must lie in [0, 1] (pixels are in [0, 1]; 8/255 is 0.0314)")
        if self.steps < 1:
            raise UserError(f"AT: steps = {self.steps} must be at least 1")
        if self.step_size is not None and not self.step_size > 0:
            raise UserError(f"AT: step_size = {self.step_size} must be above 0")
        if not 0 <= self.clean_share < 1:
            raise UserError(f"AT: clean_share = {self.clean_share} must lie in [0, 1)")

    def start(self, net: Classifier) -> Hooks:
        return _Crafting(self)


class _Crafting(Hooks):
    def __init__(self, settings: AT) -> None:
        self.settings = settings

    def craft(self, net: Classifier, x: Tensor, y: Tensor, views: dict[str, View], key: int) -> None:
        s = self.settings
        threat = Linf(s.eps)
        first = random_start(x, threat, torch.arange(len(x)), key, 0) if s.random_start else x
        rule = SignStep(threat, default_step(threat.per_sample(x), s.steps, s.step_size))
        with at_rest(net):
            found, _ = walk(net, x, y, first, threat, s.steps, rule, Own(), ce)
        views["adversarial"] = View(found, 1 - s.clean_share)
        if s.clean_share:
            views["clean"] = View(x, s.clean_share)
        else:
            views.pop("clean", None)
