"""What an attack maximizes, per sample, from logits ``[N, K]`` and labels ``[N]``.

And what training minimizes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeguard.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy ``[N]``."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Best wrong logit minus the right one, ``[N]``.

    Above 0 exactly where the class is wrong (ties aside).
    """
    right = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - right


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio ``[N]``.

    The margin over the distance from the first to the third logit, free of scale. Needs 3 classes.
    """
    top = _top(logits, 3, "dlr")
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def _top(logits: Tensor, count: int, name: str) -> Tensor:
    if logits.shape[1] < count:
        raise UserError(f"loss {name!r} needs at least {count} classes, the model has {logits.shape[1]}")
    return logits.topk(count, 1).values


class Targeted:
    """A loss that leads to a class of its own for every sample.

    'margin' ``z_t - z_y``, or 'dlr', that over a scale (4 classes at least).
    """

    def __init__(self, kind: str, targets: Tensor) -> None:
        self.kind, self.targets = kind, targets

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        ahead = (logits.gather(1, self.targets[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
        if self.kind == "margin":
            return ahead
        top = _top(logits, 4, "targeted dlr")
        return ahead / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)

    def select(self, rows: Tensor) -> None:
        """Only these samples go on."""
        self.targets = self.targets[rows]


def aim(loss: Loss, rows: Tensor) -> None:
    """Tell a loss with a state per sample which samples go on."""
    if isinstance(loss, Targeted):
        loss.select(rows)


LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin, "dlr": dlr}


def by_name(loss: str | Loss) -> Loss:
    """A loss by name, or itself."""
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise UserError(f"unknown loss {loss!r} (known: {', '.join(LOSSES)})")
    return LOSSES[loss]
