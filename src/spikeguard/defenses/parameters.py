"""Defenses that act on parameters and their gradients.

Orthogonal retraction (RAT), deflation (DSD), averaged weights, early stopping.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeguard.arguments import checked_fields
from spikeguard.attacks import sapgd, targeted
from spikeguard.attacks.adaptive import SHARPEST, AdaptiveAttack, because
from spikeguard.defenses.adversarial import AT
from spikeguard.defenses.base import Defense, Hooks, Moment, Step, StudyRow
from spikeguard.defenses.crafting import ADVERSARY
from spikeguard.gradients import ASSG, BPDA, EOT
from spikeguard.models import check_logits, is_stochastic
from spikeguard.networks.classifier import Classifier
from spikeguard.networks.wrn import ConvexCombination
from spikeguard.random import draws
from spikeguard.records.schema import Measured
from spikeguard.surrogates import Atan, Triangle
from spikeguard.threat import Linf

REESTIMATED = 40  # batches from which batch norm's statistics are taken again
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
