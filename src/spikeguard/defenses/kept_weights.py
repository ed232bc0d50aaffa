"""Defenses that choose which weights a training keeps: averaged ones, or those of the most robust epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from spikeguard.arguments import checked_fields
from spikeguard.attacks import sapgd, targeted
from spikeguard.attacks.adaptive import SHARPEST, AdaptiveAttack, because
from spikeguard.defenses.adversarial import AT
from spikeguard.defenses.base import Defense, Hooks, Step, StudyRow
from spikeguard.defenses.crafting import ADVERSARY
from spikeguard.gradients import ASSG, BPDA, EOT
from spikeguard.models import check_logits, is_stochastic
from spikeguard.networks.classifier import Classifier
from spikeguard.records.training import Measured
from spikeguard.surrogates import Atan
from spikeguard.threat import Linf

REESTIMATED = 40  # batches from which batch norm's statistics are taken again


@dataclass(frozen=True)
@checked_fields
class EMA(Defense):
    """Keep the weights averaged over the training, ``w <- decay w + (1 - decay) now``.

    ``average_from``: the share of the training after which averaging begins; in long trainings the second
    half is enough. Batch norm's averages are estimated anew, on clean training images.

    >>> sg.defenses.EMA(decay=0.99, average_from=0.5)
    EMA(decay=0.99, average_from=0.5)
    """

    idea: ClassVar[str] = "averaged weights, batch norm estimated anew"
    formula: ClassVar[str] = "w <- d w + (1 - d) now"
    source: ClassVar[str] = "common"
    adaptive: ClassVar[AdaptiveAttack] = because(
        SHARPEST,
        "Averaged weights change no pass of the network, so there is nothing to go around: the sharpest "
        "general attack.",
    )
    row: ClassVar[StudyRow] = StudyRow("EMA")
    owns: ClassVar[frozenset[str]] = frozenset({"weights that are kept"})

    decay: float = 0.995
    """Share of the old average that a training step keeps."""
    average_from: float = 0.0
    """Share of the training after which averaging begins."""

    def __post_init__(self) -> None:
        self._need(0 <= self.decay < 1, "decay", "in [0, 1)")
        self._need(0 <= self.average_from < 1, "average_from", "in [0, 1)")

    def start(self, net: Classifier) -> Hooks:
        return _EMA(self, net)


class _EMA(Hooks):
    def __init__(self, settings: EMA, net: Classifier) -> None:
        self.settings = settings
        self.mean = {name: p.detach().clone() for name, p in net.named_parameters()}
        self.steps = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def after(self, step: Step) -> None:
        begins = self.settings.average_from
        if step.progress < begins:
            return
        if begins and not int(self.steps):  # whatever came before is left out
            for name, p in step.net.named_parameters():
                self.mean[name].copy_(p)
        self.steps += 1
        kept = min(
            self.settings.decay, float(self.steps) / (10 + float(self.steps))
        )  # the first weights are forgotten sooner
        for name, p in step.net.named_parameters():
            self.mean[name].lerp_(p, 1 - kept)

    @torch.no_grad()
    def finish(self, net: Classifier, images: Iterator[Tensor]) -> None:
        if not int(self.steps):  # a training of few steps, or one that ended early
            return
        for name, p in net.named_parameters():
            p.copy_(self.mean[name])
        reestimate(net, images)

    def state(self) -> dict[str, Tensor]:
        return {**self.mean, "steps": self.steps}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.state().items():
            value.copy_(state[name])


@torch.no_grad()
def reestimate(net: nn.Module, images: Iterator[Tensor]) -> None:
    """Batch norm's running averages as plain means over the batches, network otherwise as it is.

    Its mode comes back afterwards.
    """
    training = net.training
    net.train()
    norms = {m: m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)}
    try:
        for number, x in zip(range(REESTIMATED), images, strict=False):
            for norm in norms:
                norm.momentum = 1.0 / (number + 1)
            net(x)
    finally:
        for norm, momentum in norms.items():
            norm.momentum = momentum
        net.train(training)


@dataclass(frozen=True)
@checked_fields
class EarlyStopping(Defense):
    """Keep the weights of the epoch with the best validation accuracy under SA-PGD with ASSG.

    ``images``: how many validation images (the first ones) are attacked; ``eps`` and ``steps`` of that
    attack. PGD with the training surrogate would choose epochs that hide from it. The training itself runs to
    its end: the learning rate's schedule is made for all epochs. A network that is random at test is judged
    by a mean gradient over four draws. Epochs before the network is of its final kind (conversion, HoSNN) do
    not count. UserError without validation images.

    >>> sg.defenses.EarlyStopping(images=100).chooses
    True
    """

    idea: ClassVar[str] = "keep the most robust epoch"
    formula: ClassVar[str] = "max over epochs of validation accuracy under ASSG + SA-PGD-20"
    source: ClassVar[str] = "ours in this form"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "apgd50-bpda-targeted3",
        "APGD-50, BPDA, 3 target classes",
        targeted,
        {"steps": 50, "targets": 3},
        BPDA(Atan(4.0)),
        "The epoch is chosen because it survives SA-PGD with ASSG; an attack of another family was not "
        "part of that choice.",
    )
    row: ClassVar[StudyRow] = StudyRow(
        "AT, early stopping", {"eps": 25 / 255}, group="regimes", beside=(AT(**ADVERSARY),)
    )
    owns: ClassVar[frozenset[str]] = frozenset({"weights that are kept"})
    chooses: ClassVar[bool] = True

    eps: float = 8 / 255
    """Budget of the attack that chooses, under Linf."""
    steps: int = 20
    """Steps of the attack that chooses."""
    images: int = 200
    """Validation images that are attacked, the first ones."""

    def __post_init__(self) -> None:
        self._need(0 <= self.eps <= 1, "eps", "in [0, 1]")
        self._need(self.steps >= 1, "steps", "at least 1")
        self._need(self.images >= 1, "images", "at least 1")

    def start(self, net: Classifier) -> Hooks:
        return _EarlyStopping(self, net)


class _EarlyStopping(Hooks):
    def __init__(self, settings: EarlyStopping, net: Classifier) -> None:
        self.settings = settings
        self.best = torch.full((), -math.inf, dtype=torch.float32)
        self.kept = {name: value.detach().clone() for name, value in net.state_dict().items()}

    def report(self, net: Classifier, x: Tensor, y: Tensor, settled: bool) -> dict[str, Measured]:
        s = self.settings
        x, y = x[: s.images], y[: s.images]
        random = is_stochastic(net, *check_logits(net, x, y))
        got = sapgd(
            net,
            x,
            y,
            Linf(s.eps),
            steps=s.steps,
            restarts=1,
            gradient=EOT(4, ASSG(start_from_first=True)) if random else ASSG(start_from_first=True),
        )
        robust = float((~got.broken).float().mean())
        if chosen := settled and robust > float(self.best):
            self.best.fill_(robust)
            for name, value in net.state_dict().items():
                self.kept[name].copy_(value)
        return {"validation_robust_accuracy": robust, "kept": chosen}

    @torch.no_grad()
    def finish(self, net: Classifier, images: Iterator[Tensor]) -> None:
        if math.isfinite(float(self.best)):
            net.load_state_dict(self.kept)

    def state(self) -> dict[str, Tensor]:
        return {**{f"net.{k}": v for k, v in self.kept.items()}, "best": self.best}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.best.copy_(state["best"])
        for name, value in self.kept.items():
            value.copy_(state[f"net.{name}"])
