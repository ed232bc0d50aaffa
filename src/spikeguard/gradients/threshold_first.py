"""The attack that knows of guarded thresholds: first pull silent potentials back to the threshold, then raise
the loss.

    the first ``pull`` gradients:   - grad of  sum over layers of mean max(0, |u| - width)
    afterwards:                     grad of the loss
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spikeguard.errors import UserError
from spikeguard.gradients.base import Opened, as_module, derive
from spikeguard.losses import Loss
from spikeguard.models import Model
from spikeguard.neurons.tap import tap
from spikeguard.surrogates import Atan, Surrogate


@dataclass
class _Pulled(Opened):
    width: float = 0.1
    pull: int = 10
    surrogate: Surrogate = field(default_factory=Atan)
    calls: int = 0
    frozen: bool = False

    def freeze(self, frozen: bool) -> None:
        self.frozen = frozen

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        self.forwards += len(x)
        self.backwards += len(x)
        self.calls += not self.frozen
        net = as_module(self.model, "pulled")
        if self.calls > self.pull:
            with tap(net, surrogate=self.surrogate):
                return derive(self.model, x, y, loss)
        with tap(net, surrogate=self.surrogate, potentials=True, grad=True) as t:

            def nearness(logits: Tensor, y: Tensor) -> Tensor:
                far = [
                    (u.abs() - self.width).clamp(min=0.0).transpose(0, 1).flatten(1).mean(1)
                    for u in t.potentials.values()
                ]
                return -torch.stack(far).sum(0)

            gradient, _, logits = derive(self.model, x, y, nearness)
        return gradient, loss(logits, y), logits


@dataclass(frozen=True)
class ThresholdFirst:
    """Estimator as above, adaptive to TGO and to every regularizer of potentials."""

    width: float = 0.1
    pull: int = 10
    surrogate: Surrogate = field(default_factory=Atan)

    def __post_init__(self) -> None:
        if not self.width >= 0 or self.pull < 0:
            raise UserError(f"pulled: width = {self.width} and pull = {self.pull} must be 0 or more")

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        yield _Pulled(model, width=self.width, pull=self.pull, surrogate=self.surrogate)
