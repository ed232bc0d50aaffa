"""What an attack maximizes and training minimizes: a value per sample ``[N]`` from logits and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeguard.arguments import error_line, shown
from spikeguard.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits [N, K], y [N]) -> [N]``."""


@runtime_checkable
class Objective(Protocol):
    """A loss that can be restricted to some of the samples."""

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss ``[N]``."""

    def select(self, rows: Tensor) -> Self:
        """The same loss for these samples only."""


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy ``[N]`` of logits ``[N, K]`` and labels ``[N]``.

    >>> from spikeguard.losses import ce
    >>> ce(torch.zeros(2, 4), torch.tensor([3, 0])).exp().round().tolist()
    [4.0, 4.0]
    """
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The best wrong logit minus the right one, ``[N]``: above 0 exactly where the class is wrong (ties
    aside).

    ``logits``: ``[N, K]``, ``y``: ``[N]``. The loss of Carlini and Wagner, IEEE S&P 2017, without its bound.

    >>> from spikeguard.losses import margin
    >>> margin(torch.tensor([[2.0, 5.0, 1.0]]), torch.tensor([0])).tolist()
    [3.0]
    """
    right = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - right


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio ``[N]``: the margin over the distance from the first to the third logit.

    It does not change when all logits are scaled. UserError with fewer than 3 classes. Croce and Hein, ICML
    2020.

    >>> from spikeguard.losses import dlr
    >>> dlr(torch.tensor([[2.0, 5.0, 1.0]]), torch.tensor([0])).tolist()
    [0.75]
    """
    top = _top(logits, 3, "dlr")
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def wrong_classes(logits: Tensor, y: Tensor) -> Tensor:
    """The wrong classes of every sample, the one of highest logit first, ``[N, K - 1]``."""
    masked = logits.scatter(1, y[:, None], -torch.inf)
    return masked.argsort(dim=1, descending=True, stable=True)[:, : logits.shape[1] - 1]


def _top(logits: Tensor, count: int, name: str) -> Tensor:
    if logits.shape[1] < count:
        raise UserError(f"loss {name!r} needs at least {count} classes, the model has {logits.shape[1]}")
    return logits.topk(count, 1).values


@dataclass(frozen=True, eq=False)
class Targeted:
    """A loss that rises toward one wrong class for every sample.

    ``kind``: 'margin' is ``z_t - z_y``; 'dlr' divides it by a scale of the logits and needs 4 classes (Croce
    and Hein, ICML 2020). ``targets``: the classes, ``[N]``.

    >>> from spikeguard.losses import Targeted
    >>> Targeted("margin", torch.tensor([2]))(torch.tensor([[2.0, 5.0, 1.0]]), torch.tensor([0])).tolist()
    [-1.0]
    """

    kind: str
    targets: Tensor

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        ahead = (logits.gather(1, self.targets[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
        if self.kind == "margin":
            return ahead
        top = _top(logits, 4, "targeted dlr")
        return ahead / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)

    def select(self, rows: Tensor) -> Targeted:
        """The same loss for these samples only."""
        return replace(self, targets=self.targets[rows])


@dataclass(frozen=True)
class _SameForAll:
    """A loss that holds nothing per sample; what it raises, or gives instead of ``[N]``, is one line."""

    loss: Loss

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        try:
            value: object = self.loss(logits, y)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of the user's own, or of the logits of another network
            raise UserError(
                f"the loss fails on logits of shape {tuple(logits.shape)} and {len(y)} labels "
                f"({error_line(error)})"
            ) from error
        if not isinstance(value, Tensor) or value.shape != y.shape:
            raise UserError(
                f"the loss gives {shown(value)} for {len(y)} images, must give one value for each "
                "(of torch's losses: reduction='none')"
            )
        return value

    def select(self, rows: Tensor) -> _SameForAll:
        return self


LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin, "dlr": dlr}
"""Losses by name, as recipes, records and the command line write them."""


def objective(loss: str | Loss) -> Objective:
    """A loss by name, or a callable ``(logits, y) -> [N]``, as an ``Objective``.

    A callable with a ``select`` of its own, like ``Targeted``, is used as it is. UserError for an unknown
    name.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise UserError(f"unknown loss {loss!r} (known: {', '.join(LOSSES)})")
        loss = LOSSES[loss]
    return loss if isinstance(loss, Objective) else _SameForAll(loss)
