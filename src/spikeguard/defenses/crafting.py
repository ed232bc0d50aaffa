"""How training inputs are crafted.

Every constant of the inner attack, shared by all defenses that train on adversaries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spikeguard.arguments import checked_fields
from spikeguard.attacks.batch import Batch, random_start
from spikeguard.attacks.loop import Ascent, take_all_steps
from spikeguard.attacks.pgd import SignStep, default_step
from spikeguard.defenses.base import Defense, Moment
from spikeguard.gradients import ASSG, BPTR, HART, RGA, Estimator, MeanField, Own, SwapSurrogate
from spikeguard.gradients.base import Opened
from spikeguard.losses import Loss, ce, objective
from spikeguard.models import Model, modes_kept
from spikeguard.neurons import Spiking, seed_noise
from spikeguard.random import draws
from spikeguard.random.streams import preserved_noise
from spikeguard.surrogates import Atan, StraightThrough, Triangle
from spikeguard.threat import Linf

ADVERSARY: dict[str, Any] = {"eps": 16 / 255, "steps": 2, "warmup": 0.25}
"""Settings of the training adversaries of the study, the same for every defense."""
CRAFTING_GRADIENTS: dict[str, Estimator] = {
    "own": Own(),
    "assg": ASSG(start_from_first=True),
    "assg triangle": ASSG(0.8, Triangle(), start_from_first=True),
    "atan 4": SwapSurrogate(Atan(4.0)),
    "atan 8": SwapSurrogate(Atan(8.0)),
    "straight-through": SwapSurrogate(StraightThrough()),
    "bptr": BPTR(),
    "rga": RGA(),
    "hart": HART(0.5),
    "mean field": MeanField(),
}
"""Where the gradient of a training adversary may come from."""


class TrainingAdversary(Defense):
    """What defenses share that train on adversaries under Linf, in one step or in many.

    Each declares the fields itself: recipes are written in their order, and some have others in between.
    """

    eps: float
    warmup: float
    estimators: tuple[str, ...]

    def __post_init__(self) -> None:
        self._need(0 <= self.eps <= 1, "eps", "in [0, 1] (pixels are in [0, 1]; 8/255 is 0.0314)")
        self._need(0 <= self.warmup <= 1, "warmup", "in [0, 1]")
        self._need(
            bool(self.estimators) and set(self.estimators) <= set(CRAFTING_GRADIENTS),
            "estimators",
            f"some of {', '.join(CRAFTING_GRADIENTS)}",
        )

    def estimator(self, step: Moment) -> Estimator:
        """Where the gradients of a step come from: one of ``estimators``, drawn for the batch."""
        return CRAFTING_GRADIENTS[self.estimators[step.draw("estimator") % len(self.estimators)]]


@dataclass(frozen=True)
@checked_fields
class Adversary(TrainingAdversary):
    """PGD under Linf on the batch (FGSM: ``steps`` 1, ``step_size`` eps, ``random_start`` False).

    ``step_size`` None is ``max(2.5 eps / steps, eps / 16)``. ``warmup``: share of the training over which eps
    and the step rise from 0; from there they change in a line up to ``eps_end`` at the end of the training
    (None: eps stays). ``late_steps`` is the number of steps over the last ``late_share`` of the training
    (None: ``steps``). ``batch_norm``: 'eval', or 'train' for batch statistics while crafting (running
    averages stay). ``noise`` of the neurons while crafting: 'off', 'fresh' for a new draw at every step,
    'frozen' for the same one; defenses that are random at test are so here, too. ``estimators``: names of
    ``CRAFTING_GRADIENTS``; one is drawn for every batch, so that weights cannot hide from a single backward
    pass.

    >>> sg.AT(steps=2, late_steps=4).schedule(progress=0.9)
    (1.0, 4)
    """

    eps: float = 8 / 255
    """Budget of the training adversaries under Linf, of pixels in [0, 1]."""
    steps: int = 2
    """Steps of PGD."""
    step_size: float | None = None
    """Size of a step; none is max(2.5 eps / steps, eps / 16)."""
    random_start: bool = True
    """Start at a random point of the ball instead of at the image."""
    warmup: float = 0.0
    """Share of the training over which eps and the step rise from 0."""
    eps_end: float | None = None
    """Budget at the end of the training; none keeps eps."""
    late_steps: int | None = None
    """Steps over the last part of the training; none keeps steps."""
    late_share: float = 0.3
    """The last part of the training, as a share of it."""
    batch_norm: Literal["eval", "train"] = "eval"
    """Statistics of batch norm while adversaries are crafted: running averages or those of the batch."""
    noise: Literal["off", "fresh", "frozen"] = "off"
    """Noise of the neurons while crafting: none, a new draw at every step, or the same one."""
    estimators: tuple[str, ...] = ("own",)
    """Where gradients for crafting come from; one is drawn for every batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.steps >= 1, "steps", "at least 1")
        self._need(self.step_size is None or self.step_size > 0, "step_size", "above 0")
        self._need(self.eps_end is None or 0 <= self.eps_end <= 1, "eps_end", "in [0, 1]")
        self._need(
            self.eps_end is None or (self.eps > 0 and self.warmup < 1),
            "eps_end",
            "left out where eps is 0 or warmup is 1",
        )
        self._need(self.late_steps is None or self.late_steps >= 1, "late_steps", "at least 1")
        self._need(0 < self.late_share <= 1, "late_share", "in (0, 1]")
        self._need(self.batch_norm in ("eval", "train"), "batch_norm", "'eval' or 'train'")
        self._need(self.noise in ("off", "fresh", "frozen"), "noise", "'off', 'fresh' or 'frozen'")

    def schedule(self, progress: float) -> tuple[float, int]:
        """What eps is multiplied by, and the number of steps, at a share of the training."""
        steps = (
            self.late_steps if self.late_steps is not None and progress >= 1 - self.late_share else self.steps
        )
        if progress < self.warmup:
            return progress / self.warmup, steps
        if self.eps_end is None:
            return 1.0, steps
        return 1.0 + (self.eps_end / self.eps - 1.0) * (progress - self.warmup) / (1.0 - self.warmup), steps

    def adversaries(
        self, step: Moment, loss: Loss = ce, model: nn.Module | None = None, start: Tensor | None = None
    ) -> Tensor:
        """Images ``[N, C, H, W]`` that raise ``loss`` at the outputs of ``model`` (default: the network)."""
        share, steps = self.schedule(step.progress)
        threat, x = Linf(min(self.eps * share, 1.0)), step.x
        if start is None and not self.random_start:
            start = x
        size = default_step(
            threat.per_sample(x), steps, None if self.step_size is None else self.step_size * share
        )
        estimator = self.estimator(step)
        if self.noise == "frozen":
            estimator = _Frozen(estimator, step.net, step.draw("noise of crafting"))
        batch = Batch(x, step.y, threat, torch.arange(len(x), device=x.device), step.key)
        if start is None:
            start = random_start(batch, 0)
        ascent = Ascent(estimator, objective(loss), steps)
        with crafting_mode(step.net, self.batch_norm, self.noise != "off"):
            found, _ = take_all_steps(model or step.net, batch, ascent, start, SignStep(threat, size))
        return found


def jitter(step: Moment) -> Tensor:
    """The images with a trace of noise: at the images themselves a divergence from them has no gradient."""
    noise = torch.randn(
        step.x.shape, dtype=torch.float32, generator=draws.generator(step.draw("almost")), device="cpu"
    )
    return (step.x + 1e-3 * noise.to(step.x)).clamp(0, 1)


@contextmanager
def crafting_mode(net: nn.Module, batch_norm: str, noisy: bool) -> Iterator[None]:
    """The network in eval mode; batch statistics and the neurons' noise where the arguments say so.

    Everything is restored afterwards.
    """
    norms = (
        [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if batch_norm == "train"
        else []
    )
    buffers = [(b, b.clone()) for m in norms for b in m.buffers()]
    with modes_kept(net), preserved_noise(net):
        for module in net.modules():
            if module in norms or (noisy and isinstance(module, Spiking)):
                module.training = True
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


@dataclass(frozen=True)
class _Frozen:
    """An estimator before whose every gradient the network's noise begins anew."""

    inner: Estimator
    net: nn.Module
    key: int

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        with self.inner.open(model) as opened:
            yield _Again(model, inner=opened, net=self.net, key=self.key)


class _Again(Opened):
    def __init__(self, model: Model, inner: Opened, net: nn.Module, key: int) -> None:
        super().__init__(model)
        self.inner, self.net, self.key = inner, net, key

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        seed_noise(self.net, draws.key(self.key))
        return self.inner(x, y, loss)
