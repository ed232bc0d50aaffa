"""Adversarial weight perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeguard.arguments import checked_fields
from spikeguard.attacks.adaptive import SHARPEST, AdaptiveAttack, because
from spikeguard.defenses.base import Defense, Hooks, Step, StudyRow
from spikeguard.defenses.parameters import matrices
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import frozen_norms
from spikeguard.random.streams import preserved_noise


@dataclass(frozen=True)
@checked_fields
class AWP(Defense):
    """Adversarial weight perturbation: the step's gradient is taken at weights that are worse.

    Every weight matrix moves by ``gamma`` times its norm along the gradient of the cross-entropy at the
    images that most of the loss is taken at; the optimizer then steps from where it was. Costs one more
    forward and backward pass. Wu et al., NeurIPS 2020.

    >>> sg.defenses.AWP(gamma=0.01, begin=0.5)
    AWP(gamma=0.01, begin=0.5)
    """

    idea: ClassVar[str] = "gradients at weights that are worse"
    formula: ClassVar[str] = "L(w + v), v = gamma |w| g / |g|, matrix by matrix"
    source: ClassVar[str] = "Wu et al., NeurIPS 2020"
    adaptive: ClassVar[AdaptiveAttack] = because(
        SHARPEST,
        "Flat minima change no pass of the network, so there is nothing to go around: the sharpest general "
        "attack.",
    )
    row: ClassVar[StudyRow] = StudyRow("AWP")

    gamma: float = 5e-3
    """How far a matrix moves, in units of its norm."""
    begin: float = 0.0
    """Share of the training after which weights are perturbed."""

    def __post_init__(self) -> None:
        self._need(0 < self.gamma < 1, "gamma", "in (0, 1)")
        self._need(0 <= self.begin < 1, "begin", "in [0, 1)")

    def start(self, net: Classifier) -> Hooks:
        return _AWP(self)


class _AWP(Hooks):
    def __init__(self, settings: AWP) -> None:
        self.settings = settings
        self.before: list[Tensor] = []

    def complete(self, step: Step) -> None:
        if step.progress < self.settings.begin:
            return
        net, view = step.net, step.views[step.main_view()]
        weights = [m.weight for m in matrices(net)]
        with preserved_noise(net), frozen_norms(net):
            loss = F.cross_entropy(net(view.x), step.y)
            found = torch.autograd.grad(loss, weights, allow_unused=True)
        self.before = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for weight, gradient in zip(weights, found, strict=True):
                if gradient is not None:
                    weight += (
                        self.settings.gamma
                        * weight.norm()
                        * F.normalize(gradient.flatten(), dim=0).view_as(weight)
                    )

    @torch.no_grad()
    def gradients(self, net: Classifier) -> None:
        for module, weight in zip(matrices(net), self.before, strict=False):
            module.weight.copy_(weight)
        self.before = []
