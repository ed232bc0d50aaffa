"""What an adversary may change."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spikeguard.errors import AttackError, UserError


@dataclass(frozen=True)
class Linf:
    """Every pixel may move by at most ``eps`` (in units of images in [0, 1]); one number, or one a sample (``[N]``)."""

    eps: float | Tensor

    def __post_init__(self) -> None:
        lowest = float(self.eps.min()) if isinstance(self.eps, Tensor) else float(self.eps)
        if not lowest >= 0:
            raise UserError(f"Linf: eps = {lowest} must be 0 or more")
        if isinstance(self.eps, Tensor) and self.eps.dim() != 1:
            raise UserError(f"Linf: eps of shape {tuple(self.eps.shape)} must be a number or of shape [N]")

    def per_sample(self, x: Tensor) -> Tensor:
        """eps as ``[N, 1, ...]``, on the device and in the dtype of ``x``."""
        eps = self.eps if isinstance(self.eps, Tensor) else torch.full((len(x),), float(self.eps), dtype=torch.float64)
        if len(eps) != len(x):
            raise UserError(f"Linf: {len(eps)} values of eps for {len(x)} images")
        return eps.to(x).view(-1, *[1] * (x.dim() - 1))

    def take(self, rows: Tensor) -> Linf:
        """The threat to some of the samples."""
        return replace(self, eps=self.eps[rows.to(self.eps.device)]) if isinstance(self.eps, Tensor) else self

    def project(self, candidate: Tensor, x: Tensor) -> Tensor:
        """The nearest point inside the budget around ``x`` and inside [0, 1]."""
        eps = self.per_sample(x)
        return torch.minimum(torch.maximum(candidate, x - eps), x + eps).clamp(0.0, 1.0)

    def check(self, found: Tensor, x: Tensor) -> None:
        """Raise AttackError unless ``found`` is finite, inside [0, 1] and inside the budget, to 1e-6."""
        if not bool(torch.isfinite(found).all()):
            raise AttackError("attack returned values that are not finite")
        over = float(((found - x).abs() - self.per_sample(x)).max()) if len(x) else 0.0
        if over > 1e-6 or bool((found < 0).any()) or bool((found > 1).any()):
            raise AttackError(f"attack left its budget by {over:.2e} or left [0, 1]")


def check_images(x: Tensor, y: Tensor | None = None) -> None:
    """Refuse what is no batch of images in [0, 1] with its labels, in one line."""
    if not x.is_floating_point():
        raise UserError(f"images are {x.dtype}; pass floats in [0, 1] (bytes: x.float() / 255)")
    if x.dim() < 2 or not len(x):
        raise UserError(f"images have shape {tuple(x.shape)}; pass a batch [N, C, H, W] with N >= 1")
    if not bool(torch.isfinite(x).all()):
        raise UserError("images hold values that are not finite")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        hint = " (bytes passed as floats? divide by 255)" if high > 2 else " (normalise inside the model, not before)" if low < 0 else ""
        raise UserError(f"images lie in [{low:.3g}, {high:.3g}], must lie in [0, 1]{hint}")
    if y is not None and (y.shape != x.shape[:1] or y.is_floating_point() or y.dtype == torch.bool):
        raise UserError(f"labels are {y.dtype} of shape {tuple(y.shape)}, must be integers of shape [{len(x)}]")
