"""A robust ANN as the teacher.

It is trained first, in the same training, and the spiking network then learns its answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spikeguard.arguments import checked_fields
from spikeguard.attacks import sapgd
from spikeguard.attacks.adaptive import AdaptiveAttack
from spikeguard.defenses.adversarial import divergence
from spikeguard.defenses.base import FIRST_PART, Hooks, Step, StudyRow, View
from spikeguard.defenses.conversion import Posing, Rectified
from spikeguard.defenses.crafting import ADVERSARY, Adversary
from spikeguard.gradients import ReLUTwin
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Spiking, seed_noise
from spikeguard.neurons.modifiers import Dynamics


@dataclass(frozen=True)
@checked_fields
class Distillation(Adversary):
    """``(1 - c) tau^2 KL(T(x) || S(x')) + c tau^2 KL(T(x) || S(x))`` in place of the task's loss, c the
    ``clean_share``.

    T is the ANN of the same layers (ReLU, one step), trained on adversaries over the first ``share`` of the
    training and then frozen; S the spiking network, which goes on from its weights. x' is the adversary of
    the first divergence. Robust soft labels are from Zi et al., ICCV 2021; that the teacher is an ANN of the
    same training is ours.

    >>> sg.defenses.Distillation(share=1.0)
    Traceback (most recent call last):
    spikeguard.errors.UserError: Distillation: share = 1.0 must be in (0, 1)
    """

    idea: ClassVar[str] = "ours in this form: a robust ANN, trained first, is the teacher"
    formula: ClassVar[str] = "(1 - c) KL(T(x) || S(x')) + c KL(T(x) || S(x))"
    source: ClassVar[str] = "after Zi et al., ICCV 2021"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd50-relu-twin-margin",
        "SA-PGD-50, ReLU twin, margin loss",
        sapgd,
        {"steps": 50, "loss": "margin"},
        ReLUTwin(),
        "The student goes on from the weights of its teacher, an ANN of the same layers: the gradient "
        "of that ANN transfers.",
    )
    row: ClassVar[StudyRow] = StudyRow("distillation", ADVERSARY, group="regimes")
    owns: ClassVar[frozenset[str]] = frozenset({"training inputs", FIRST_PART})

    share: float = 0.5
    """Share of the training that trains the teacher."""
    clean_share: float = 1 / 6
    """Share of the student's loss that stays on clean images."""
    temperature: float = 1.0
    """Outputs of teacher and student are divided by it before the softmax."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(0 < self.share < 1, "share", "in (0, 1)")
        self._need(0 <= self.clean_share <= 1, "clean_share", "in [0, 1]")
        self._need(self.temperature > 0, "temperature", "above 0")

    def start(self, net: Classifier) -> Hooks:
        return _Distillation(self, net)


class _Distillation(Posing):
    def __init__(self, settings: Distillation, net: Classifier) -> None:
        super().__init__(settings.share, net)
        self.settings, self.net = settings, net
        self.teacher: Classifier | None = None
        self.answers: Tensor | None = None  # the teacher's logits of this step

    def activation(self, layer: Spiking) -> Dynamics:
        return Rectified()

    def begin(self, step: Step) -> None:
        if step.progress >= self.share and self.teacher is None:
            self.teacher = self._frozen()
        super().begin(step)

    def _frozen(self) -> Classifier:
        """The network as it is now, without spikes."""
        self.pose(self.net, True)
        teacher = deepcopy(self.net).eval().requires_grad_(False)
        self.pose(self.net, False)
        return teacher

    def craft(self, step: Step) -> None:
        if self.teacher is None:
            step.views = {"adversarial": View(self.settings.adversaries(step), 1.0)}
            return
        tau = self.settings.temperature
        seed_noise(self.teacher, step.draw("teacher"))  # images may be disturbed on their way into it, too
        with torch.no_grad():
            answers = self.answers = self.teacher(step.x)

        def loss(logits: Tensor, y: Tensor) -> Tensor:
            return divergence(answers / tau, logits / tau)

        step.views = {"adversarial": View(self.settings.adversaries(step, loss), 0.0)}
        if self.settings.clean_share:
            step.views["clean"] = View(step.x, 0.0)

    def penalty(self, step: Step) -> Tensor | None:
        if self.teacher is None or self.answers is None:
            return None
        tau, c = self.settings.temperature, self.settings.clean_share

        def distance(view: str) -> Tensor:
            assert self.answers is not None
            return tau**2 * divergence(self.answers / tau, step.scored(view) / tau).mean()

        total = (1 - c) * distance("adversarial")
        return total + c * distance("clean") if c else total

    def state(self) -> dict[str, Tensor]:
        return {} if self.teacher is None else dict(self.teacher.state_dict())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if state:
            self.teacher = self._frozen()
            self.teacher.load_state_dict(dict(state))
