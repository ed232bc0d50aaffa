"""What an attack maximises, per sample, from logits ``[N, K]`` and labels ``[N]``; and what training minimises."""

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
    """Best wrong logit minus the right one, ``[N]``: above 0 exactly where the class is wrong (ties aside)."""
    right = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - right


LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin}


def by_name(loss: str | Loss) -> Loss:
    """A loss by name, or itself."""
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise UserError(f"unknown loss {loss!r} (known: {', '.join(LOSSES)})")
    return LOSSES[loss]
