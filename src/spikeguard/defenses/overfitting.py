"""Ending a training that has learned to hide from its own adversaries."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spikeguard.arguments import checked_fields
from spikeguard.attacks import sapgd
from spikeguard.attacks.adaptive import SHARPEST, AdaptiveAttack, because
from spikeguard.defenses.base import Defense, Hooks, Step, StudyRow
from spikeguard.defenses.crafting import ADVERSARY
from spikeguard.defenses.one_step import NFGSM
from spikeguard.gradients import ASSG, EOT
from spikeguard.models import check_logits, is_stochastic
from spikeguard.networks.classifier import Classifier
from spikeguard.records.training import Measured
from spikeguard.threat import Linf

log = logging.getLogger("spikeguard")


@dataclass(frozen=True)
@checked_fields
class OverfittingStop(Defense):
    """End a training at catastrophic overfitting, with the weights of the last sound epoch.

    That is an epoch in which training adversaries become easier than in any before, while accuracy on
    validation images under SA-PGD with ASSG falls below ``share`` of its best. The attack has ``steps``
    steps, budget ``eps``, and the first ``images`` validation images; its result is part of every epoch's
    record (``validation_robust_accuracy``). Without such an epoch it changes nothing. Wong et al., ICLR
    2020, describe the failure. UserError without validation images.

    >>> sg.defenses.OverfittingStop(images=100).chooses
    True
    """

    idea: ClassVar[str] = "end the training at catastrophic overfitting"
    formula: ClassVar[str] = "stop if training accuracy rises and validation under SA-PGD falls below half"
    source: ClassVar[str] = "ours in this form"
    adaptive: ClassVar[AdaptiveAttack] = because(
        SHARPEST,
        "Ending a training changes no pass of the network, so there is nothing to go around: the sharpest "
        "general attack.",
    )
    row: ClassVar[StudyRow] = StudyRow(
        "N-FGSM, overfitting stop",
        {"eps": 25 / 255},
        group="regimes",
        beside=(NFGSM(eps=ADVERSARY["eps"], warmup=ADVERSARY["warmup"]),),
    )
    owns: ClassVar[frozenset[str]] = frozenset({"end of the training"})
    chooses: ClassVar[bool] = True

    eps: float = 8 / 255
    """Budget of the attack on validation images, under Linf."""
    steps: int = 10
    """Its steps."""
    images: int = 200
    """Validation images that are attacked, the first ones."""
    share: float = 0.5
    """The training ends below this share of the best accuracy under attack."""

    def __post_init__(self) -> None:
        self._need(0 <= self.eps <= 1, "eps", "in [0, 1]")
        self._need(self.steps >= 1, "steps", "at least 1")
        self._need(self.images >= 1, "images", "at least 1")
        self._need(0 < self.share < 1, "share", "in (0, 1)")

    def start(self, net: Classifier) -> Hooks:
        return _OverfittingStop(self, net)


class _OverfittingStop(Hooks):
    last = True  # averaged weights hold the epoch that overfitted

    def __init__(self, settings: OverfittingStop, net: Classifier) -> None:
        self.settings = settings
        self.sound = {name: value.detach().clone() for name, value in net.state_dict().items()}
        self.sums = torch.zeros(2, dtype=torch.int64)  # right training adversaries, all of them
        self.best = torch.zeros(
            2, dtype=torch.float32
        )  # accuracy on training adversaries, on attacked validation images
        self.overfitted = torch.zeros((), dtype=torch.bool)

    @property
    def ended(self) -> bool:  # type: ignore[override]
        """Whether the last epoch overfitted."""
        return bool(self.overfitted)

    def after(self, step: Step) -> None:
        right = (step.scored(step.main_view()).detach().argmax(1) == step.y).sum()
        self.sums += torch.stack([right.cpu(), torch.tensor(len(step.y))])

    def report(self, net: Classifier, x: Tensor, y: Tensor, settled: bool) -> dict[str, Measured]:
        trained = float(self.sums[0]) / max(1, int(self.sums[1]))
        self.sums.zero_()
        if not settled:
            return {}
        robust = self.robust_accuracy(net, x[: self.settings.images], y[: self.settings.images])
        found = trained > float(self.best[0]) and robust < self.settings.share * float(self.best[1])
        if found:
            log.warning(
                "accuracy is %.1f %% on training adversaries, the highest of all epochs, but fell from %.1f "
                "to %.1f %% on attacked validation images: catastrophic overfitting; the training ends with "
                "the weights of the epoch before",
                *(100 * trained, 100 * float(self.best[1]), 100 * robust),
            )
            self.overfitted.fill_(True)
        else:
            for name, value in net.state_dict().items():
                self.sound[name].copy_(value)
        self.best = torch.maximum(self.best, torch.tensor([trained, robust]))
        return {"validation_robust_accuracy": robust, "overfitted": found}

    def robust_accuracy(self, net: Classifier, x: Tensor, y: Tensor) -> float:
        """Accuracy under SA-PGD with ASSG."""
        s, gradient = self.settings, ASSG(start_from_first=True)
        random = is_stochastic(net, *check_logits(net, x, y))
        chosen = EOT(4, gradient) if random else gradient
        got = sapgd(net, x, y, Linf(s.eps), steps=s.steps, restarts=1, gradient=chosen)
        return float((~got.broken).float().mean())

    @torch.no_grad()
    def finish(self, net: Classifier, images: Iterator[Tensor]) -> None:
        if self.ended:
            net.load_state_dict(self.sound)

    def state(self) -> dict[str, Tensor]:
        kept = {"sums": self.sums, "best": self.best, "overfitted": self.overfitted}
        return {**{f"net.{k}": v for k, v in self.sound.items()}, **kept}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.state().items():
            value.copy_(state[name])
