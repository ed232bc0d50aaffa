"""What foreign neurons compare with 0, ``u + noise``, and the penalty of ``u`` in the band, in one pass.

For potentials that a framework computes; spikeguard's own kernels do both on the way. The penalty is
``mean max(0, delta - |u|)``. In C++ on a CPU where the numbers lie dense in memory, else by torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from spikeguard.kernels import cpp_build
from spikeguard.kernels.context import Context
from spikeguard.kernels.cpp_build import BAND_SIDES, SMALL, Args, BuildError
from spikeguard.kernels.mode import Band, widen

CALLS = 8
"""A layer calls this once a time step, so that it pays for layers smaller by so much."""


class _Kept(Context, Protocol):
    saved_tensors: tuple[Tensor]
    band: Band


class _Compared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Kept, u: Tensor, noise: Tensor | None, band: Band) -> tuple[Tensor | None, Tensor]:
        ctx.save_for_backward(u)
        ctx.band = band
        ctx.set_materialize_grads(False)
        compare = _native("compare", u, noise, band)
        if compare is None:
            return None if noise is None else u + noise, _hinge(widen(u), band)
        w = None if noise is None else torch.empty_like(u)
        return w, (compare(current=u, other=noise, spikes=w) / u.numel()).float()

    @staticmethod
    def backward(ctx: _Kept, g: Tensor | None, g_penalty: Tensor | None) -> tuple[Tensor | None, None, None]:
        (u,) = ctx.saved_tensors
        if g_penalty is None:
            return g, None, None
        if not torch.is_grad_enabled() and (back := _native("compare_back", u, g, ctx.band)):
            moved = torch.empty_like(u)
            back(current=u, g_spikes=g, g_current=moved, g_band=g_penalty)
            return moved, None, None
        away = _hinge_backward(widen(u), ctx.band, g_penalty).to(u.dtype)
        return away if g is None else g + away, None, None


def _hinge(u: Tensor, band: Band) -> Tensor:
    """``delta - |u|`` is ``delta`` less the size of ``u`` clamped to the band."""
    delta = band.delta
    if band.side == "both":
        size: Tensor = torch.linalg.vector_norm(u.clamp(-delta, delta), 1)
        return delta - size / u.numel()
    below = (u + delta).clamp_(0.0, delta)
    return below.masked_fill_(u >= 0, 0.0).mean()


def _hinge_backward(u: Tensor, band: Band, g: Tensor) -> Tensor:
    upper = band.delta if band.side == "both" else 0.0
    away = u.sign() * (-g / u.numel())
    inside: Tensor = torch.ops.aten.hardtanh_backward(away, u, -band.delta, upper)
    return inside


def _native(name: str, u: Tensor, other: Tensor | None, band: Band) -> Callable[..., Tensor] | None:
    """A function of the library that gets ``u`` and ``other`` and returns its sum, None if it cannot.

    It sees memory, so both must lie there in the same order.
    """
    fits = other is None or (
        other.dtype == u.dtype and other.shape == u.shape and other.stride() == u.stride()
    )
    dense = u.is_contiguous() or (u.dim() == 4 and u.is_contiguous(memory_format=torch.channels_last))
    large = u.device.type == "cpu" and cpp_build.use(CALLS * u.numel())
    if not (fits and dense and large and u.dtype == torch.float32):
        return None
    flags = {"STEPS": 1, "CONSTANT": 0, "BFLOAT16": 0, "INNER": 0, "BAND": BAND_SIDES[band.side]}
    try:
        function = cpp_build.function(name, SMALL, "u", **flags)
    except BuildError:
        return None

    def run(**tensors: Tensor | None) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device="cpu")
        args = Args(samples=u.numel(), delta=band.delta, sums=total.data_ptr())
        args.threads = torch.get_num_threads() if u.numel() > 2**14 else 1
        for key, tensor in tensors.items():
            setattr(args, key, None if tensor is None else tensor.data_ptr())
        function(ctypes.byref(args))
        return total

    return run


_compared: Callable[[Tensor, Tensor | None, Band], tuple[Tensor | None, Tensor]] = _Compared.apply


def compared(u: Tensor, noise: Tensor | None, band: Band | None) -> tuple[Tensor, Tensor | None]:
    """``u + noise``, and the mean of ``max(0, delta - |u|)`` over everything, a scalar."""
    if band is None:
        return u if noise is None else u + noise, None
    w, penalty = _compared(u, noise, band)
    return u if w is None else w, penalty
