"""The penalty of potentials in the band, ``mean max(0, delta - |u|)``, in few passes over memory.

For potentials that a framework computes; spikeguard's own kernels compute it on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from spikeguard.kernels.context import Context
from spikeguard.kernels.mode import Band, widen


class _Kept(Context, Protocol):
    saved_tensors: tuple[Tensor]
    band: Band


class _Hinge(torch.autograd.Function):
    """``delta - |u|`` is ``delta`` less the size of ``u`` clamped to the band."""

    @staticmethod
    def forward(ctx: _Kept, u: Tensor, band: Band) -> Tensor:
        ctx.save_for_backward(u)
        ctx.band = band
        delta = band.delta
        if band.side == "both":
            size: Tensor = torch.linalg.vector_norm(u.clamp(-delta, delta), 1)
            return delta - size / u.numel()
        below = (u + delta).clamp_(0.0, delta)
        return below.masked_fill_(u >= 0, 0.0).mean()

    @staticmethod
    def backward(ctx: _Kept, g: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        delta, upper = ctx.band.delta, ctx.band.delta if ctx.band.side == "both" else 0.0
        away = u.sign().mul_(-g / u.numel())
        inside: Tensor = torch.ops.aten.hardtanh_backward(away, u, -delta, upper)
        return inside, None


_hinge: Callable[[Tensor, Band], Tensor] = _Hinge.apply


def penalty(u: Tensor, band: Band) -> Tensor:
    """The mean of ``max(0, delta - |u|)`` over everything, a scalar."""
    return _hinge(widen(u), band)
