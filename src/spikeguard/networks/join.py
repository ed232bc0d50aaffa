"""``a x + b y`` with learned weights, in one pass over memory each way."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeguard.kernels import cpp_build
from spikeguard.kernels.context import Context
from spikeguard.kernels.cpp_build import SMALL, Args
from spikeguard.kernels.needs_grad import needs_grad


def join(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """``weight[0] x + weight[1] y`` for ``x`` and ``y`` of one shape."""
    fits = (
        x.shape == y.shape
        and x.dtype == y.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.device.type == "cpu"
    )
    if fits and _dense(x) and cpp_build.use(x.numel()):
        return _join(x, y, weight)
    return weight[0].to(x.dtype) * x + weight[1].to(y.dtype) * y


def _dense(x: Tensor) -> bool:
    """Does the tensor fill its memory without gaps, in any order?"""
    return (
        x.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        if x.dim() == 5
        else x.is_contiguous()
    )


def _laid_out_as(x: Tensor, like: Tensor) -> Tensor:
    """The same values in the memory order of ``like``."""
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def _call(name: str, x: Tensor, y: Tensor, weight: Tensor, affine: bool, **tensors: Tensor) -> Tensor:
    a, b = weight.tolist()
    sums = torch.zeros(2, dtype=torch.float64)
    args = Args(samples=x.numel(), threads=torch.get_num_threads(), decay=a, threshold=b)
    for key, tensor in {"current": x, "other": y, "sums": sums, **tensors}.items():
        setattr(args, key, tensor.data_ptr())
    half = int(x.dtype == torch.bfloat16)
    cpp_build.function(name, SMALL, "u", STEPS=1, CONSTANT=0, BFLOAT16=half, INNER=0, AFFINE=int(affine))(
        ctypes.byref(args)
    )
    return sums


class _Kept(Context, Protocol):
    saved_tensors: tuple[Tensor, Tensor, Tensor]


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Kept, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        y = _laid_out_as(y, x)
        out = torch.empty_like(x)
        _call("join", x, y, weight, False, spikes=out)
        ctx.save_for_backward(x, y, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: _Kept, g: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, y, weight = ctx.saved_tensors
        g = _laid_out_as(g, x)
        g_x, g_y = torch.empty_like(x), torch.empty_like(x)
        learned = needs_grad(ctx, 2)
        sums = _call("part", x, y, weight, learned, g_spikes=g, spikes=g_x, g_current=g_y)
        return g_x, g_y, sums.to(weight) if learned else None


_join: Callable[[Tensor, Tensor, Tensor], Tensor] = _Join.apply
