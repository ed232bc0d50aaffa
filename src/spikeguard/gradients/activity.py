"""An attack on the neurons whose activity is extreme: it silences the busiest and wakes the quietest.

    grad of  loss + weight * sum over layers of (mean u of the quietest - mean u of the busiest)

Which neurons these are is decided once a sample, at the first point that the attack visits.
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
class ActivityOpened(Opened):
    """``chosen``: by layer, -1 for the busiest neurons, 1 for the quietest, 0 for the others, ``[N, M]``."""

    share: float = 0.1
    weight: float = 0.1
    surrogate: Surrogate = field(default_factory=Atan)
    chosen: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> Gradient:
        self.forwards += len(x)
        self.backwards += len(x)
        with tap(
            as_module(self.model, "Activity"), surrogate=self.surrogate, potentials=True, grad=True
        ) as t:

            def with_activity(logits: Tensor, y: Tensor) -> Tensor:
                means = {name: u.mean(0).flatten(1) for name, u in t.potentials.items()}
                if not self.chosen:
                    self.chosen = {name: extremes(u, self.share) for name, u in t.potentials.items()}
                moved = torch.stack([(self.chosen[name] * mean).sum(1) for name, mean in means.items()])
                counts = torch.stack([c.abs().sum(1) / 2 for c in self.chosen.values()])
                return loss(logits, y) + self.weight * (moved / counts).sum(0)

            gradient, _, logits = derive(self.model, x, y, with_activity)
        return gradient, loss(logits, y), logits

    def select(self, rows: Tensor) -> None:
        self.chosen = {name: marks[rows] for name, marks in self.chosen.items()}


def extremes(u: Tensor, share: float) -> Tensor:
    """From potentials ``[T, N, ...]``: -1 for the busiest ``share`` of a layer's neurons, 1 for the quietest,
    else 0, ``[N, M]``.

    By their spikes; of equals the busier one has the higher mean potential.
    """
    activity = ((u >= 0).to(u.dtype).mean(0) + 1e-3 * u.mean(0).tanh()).detach().flatten(1)
    count = max(round(share * activity.shape[1]), 1)
    order = activity.argsort(dim=1, descending=True, stable=True)
    marks = torch.zeros_like(activity)
    marks.scatter_(1, order[:, -count:], 1.0)
    return marks.scatter_(1, order[:, :count], -1.0)


@dataclass(frozen=True)
@checked_fields
class Activity:
    """Gradients that also silence the busiest neurons of a sample and wake its quietest.

    ``share``: of the neurons of each layer, in (0, 0.5]; ``weight``: of their mean potentials beside the
    loss; ``surrogate``: used in all neurons. UserError on other values, and where the model has no neurons of
    this library. After the choice of neurons of Spike-PTSD (arXiv 2604.01750); the objective is ours.

    >>> extreme = sg.gradients.Activity(share=0.2)
    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=3, restarts=1, gradient=extreme)
    >>> found.x.shape == x.shape
    True
    """

    share: float = 0.1
    weight: float = 0.1
    surrogate: Surrogate = field(default_factory=Atan)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 0.5 or not self.weight >= 0:
            raise UserError(
                f"Activity: share = {self.share} must lie in (0, 0.5], weight = {self.weight} must be 0 or "
                "more"
            )

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        yield ActivityOpened(model, share=self.share, weight=self.weight, surrogate=self.surrogate)
