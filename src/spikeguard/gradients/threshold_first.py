"""An attack on networks that keep potentials away from the threshold: first move them back, then raise the
loss.

    the first ``pull`` gradients:   - grad of  sum over layers of mean max(0, |u| - width)
    afterwards:                     grad of the loss
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spikeguard.adapters.tap import tap
from spikeguard.arguments import checked_fields
from spikeguard.errors import UserError
from spikeguard.gradients.base import Gradient, Opened, as_module, derive
from spikeguard.losses import Loss
from spikeguard.models import Model
from spikeguard.surrogates import Atan, Surrogate


@dataclass
class ThresholdFirstOpened(Opened):
    """Counts its gradients: the first ``pull`` of them move potentials."""

    width: float = 0.1
    pull: int = 10
    surrogate: Surrogate = field(default_factory=Atan)
    calls: int = 0
    frozen: bool = False

    def freeze(self, frozen: bool) -> None:
        self.frozen = frozen

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> Gradient:
        self.forwards += len(x)
        self.backwards += len(x)
        self.calls += not self.frozen
        net = as_module(self.model, "ThresholdFirst")
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
@checked_fields
class ThresholdFirst:
    """Gradients that first move potentials to the threshold; adaptive to TGO and to regularizers of
    potentials.

    ``width``: potentials this near the threshold are near enough; ``pull``: how many gradients move
    potentials; ``surrogate``: used in all neurons. UserError on negative values. Ours, after the advice of
    Tramer et al., NeurIPS 2020.

    >>> first = sg.gradients.ThresholdFirst(pull=2)
    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=4, restarts=1, gradient=first)
    >>> found.x.shape == x.shape
    True
    """

    width: float = 0.1
    pull: int = 10
    surrogate: Surrogate = field(default_factory=Atan)

    def __post_init__(self) -> None:
        if not self.width >= 0 or self.pull < 0:
            raise UserError(f"ThresholdFirst: width = {self.width} and pull = {self.pull} must be 0 or more")

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        yield ThresholdFirstOpened(model, width=self.width, pull=self.pull, surrogate=self.surrogate)
