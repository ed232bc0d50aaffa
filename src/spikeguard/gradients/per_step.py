"""The loss at every time step's own logits, averaged (temporal efficient training, TET)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from spikeguard.arguments import checked_fields
from spikeguard.gradients.base import Estimator, Gradient, Opened, Own, as_module
from spikeguard.gradients.transfer import TransferOpened
from spikeguard.losses import Loss
from spikeguard.models import Model


class StepLogits(nn.Module):
    """A network that gives logits ``[T, N, K]`` of every time step."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x, per_step=True)
        return logits


@dataclass(frozen=True)
@checked_fields
class PerStep:
    """The gradient of the loss at every time step's logits, averaged over time. Deng et al., ICLR 2022.

    ``inner``: the estimator that gives the gradient. For networks from ``sg.build``, and modules whose
    ``forward(x, per_step=True)`` gives ``[T, N, K]``; UserError for a model that is no module.

    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=2, restarts=1, gradient=sg.gradients.PerStep())
    >>> found.x.shape == x.shape
    True
    """

    part: ClassVar[str] = "step logits"
    inner: Estimator = field(default_factory=Own)

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        with self.inner.open(StepLogits(as_module(model, "PerStep")).eval()) as inner:
            yield PerStepOpened(model, inner=inner)


@dataclass
class PerStepOpened(TransferOpened):
    """Averages loss and logits of ``inner`` over time."""

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> Gradient:
        def averaged(logits: Tensor, y: Tensor) -> Tensor:
            return torch.stack([loss(z, y) for z in logits]).mean(0)

        gradient, value, logits = self.inner(x, y, averaged)
        self.forwards += len(x)
        self.backwards += len(x)
        return gradient, value, logits.mean(0)
