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

from spikeguard.attacks import sapgd
from spikeguard.defenses.adversarial import STRONGEST
from spikeguard.defenses.base import Defense, Hooks, Step
from spikeguard.gradients import ASSG, EOT
from spikeguard.models import check_logits, is_stochastic
from spikeguard.networks.classifier import Classifier
from spikeguard.networks.wrn import ConvexCombination
from spikeguard.random import draws
from spikeguard.threat import Linf

REESTIMATED = 40  # batches from which batch norm's statistics are taken again
ROWS, MANY = 0.3, 200  # share of the rows that the retraction takes of a linear layer with many


def matrices(net: nn.Module) -> Iterator[nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            yield module


@dataclass(frozen=True)
class RAT(Defense):
    """After every step ``W <- (1 + beta) W - beta W W^T W``: singular values are drawn to 1. With ``AT`` it
    is the regime RAT.

    Of linear layers with 200 rows and more, 30 % of the rows by lot. Learned convex combinations (wrn16) go
    back onto the simplex. The published recipe trains without weight decay then. Ding et al., NeurIPS 2022.
    """

    adaptive: ClassVar[str] = STRONGEST

    beta: float = 5e-4

    def __post_init__(self) -> None:
        self._need(0 < self.beta < 0.5, "beta", "in (0, 0.5)")

    def start(self, net: Classifier) -> Hooks:
        return _RAT(self)


class _RAT(Hooks):
    def __init__(self, settings: RAT) -> None:
        self.settings = settings

    @torch.no_grad()
    def after(self, step: Step) -> None:
        beta = self.settings.beta
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
class DSD(Defense):
    """Dominant singular deflation: every gradient matrix loses its first singular component before the
    optimizer's step.

    ``iterations`` of power iteration find it (the published method takes a whole decomposition). arXiv, ICLR
    2026.
    """

    adaptive: ClassVar[str] = STRONGEST

    iterations: int = 2

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
class EMA(Defense):
    """The network that is kept has the weights averaged over the training, ``w <- decay w + (1 - decay)
    now``.

    Batch norm's averages are taken anew, on clean training images.
    """

    adaptive: ClassVar[str] = STRONGEST
    owns: ClassVar[frozenset[str]] = frozenset({"weights that are kept"})

    decay: float = 0.995

    def __post_init__(self) -> None:
        self._need(0 <= self.decay < 1, "decay", "in [0, 1)")

    def start(self, net: Classifier) -> Hooks:
        return _EMA(self, net)


class _EMA(Hooks):
    def __init__(self, settings: EMA, net: Classifier) -> None:
        self.settings = settings
        self.mean = {name: p.detach().clone() for name, p in net.named_parameters()}
        self.steps = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def after(self, step: Step) -> None:
        self.steps += 1
        kept = min(
            self.settings.decay, float(self.steps) / (10 + float(self.steps))
        )  # the first weights are forgotten sooner
        for name, p in step.net.named_parameters():
            self.mean[name].lerp_(p, 1 - kept)

    @torch.no_grad()
    def finish(self, net: Classifier, images: Iterator[Tensor]) -> None:
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
class EarlyStopping(Defense):
    """Keep the weights of the epoch with the best validation accuracy under SA-PGD with ASSG, an attack that
    bites.

    ``images``: how many validation images (the first ones) are attacked; ``eps`` and ``steps`` of that
    attack. PGD with the training surrogate would choose epochs that hide from it. The training itself runs to
    its end: the learning rate's schedule is made for all epochs. A network that is random at test is judged
    by a mean gradient over four draws. Epochs before the network is of its final kind (conversion, HoSNN) do
    not count. UserError without validation images.
    """

    adaptive: ClassVar[str] = STRONGEST
    owns: ClassVar[frozenset[str]] = frozenset({"weights that are kept"})
    chooses: ClassVar[bool] = True

    eps: float = 8 / 255
    steps: int = 20
    images: int = 200

    def __post_init__(self) -> None:
        self._need(0 <= self.eps <= 1, "eps", "in [0, 1]")
        self._need(self.steps >= 1, "steps", "at least 1")
        self._need(self.images >= 1, "images", "at least 1")

    def start(self, net: Classifier) -> Hooks:
        return _EarlyStopping(self, net)


class _EarlyStopping(Hooks):
    def __init__(self, settings: EarlyStopping, net: Classifier) -> None:
        self.settings = settings
        self.best = torch.full((), -math.inf)
        self.kept = {name: value.detach().clone() for name, value in net.state_dict().items()}

    def report(self, net: Classifier, x: Tensor, y: Tensor, settled: bool) -> dict[str, object]:
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
