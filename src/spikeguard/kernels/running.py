"""Running mean and mean deviation of ``|u|``, for surrogates that adapt to the potentials."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from spikeguard.kernels import cpp_build
from spikeguard.kernels.cpp_build import SMALL, Args


def adapt(u: Tensor, mean: Tensor, spread: Tensor) -> None:
    """``M <- 0.9 M + 0.1 |u|,  D <- 0.9 D + 0.1 ||u| - M|``, in place; all of one shape."""
    fits = (
        u.stride() == mean.stride() == spread.stride()
        and u.dtype == mean.dtype == spread.dtype == torch.float32
    )
    if not (fits and u.device.type == "cpu" and cpp_build.use(u.numel())):
        size = u.abs()
        mean.mul_(0.9).add_(0.1 * size)
        spread.mul_(0.9).add_(0.1 * (size - mean).abs())
        return
    args = Args(samples=u.numel(), threads=torch.get_num_threads())
    args.u, args.shift, args.scale = u.data_ptr(), mean.data_ptr(), spread.data_ptr()
    cpp_build.function("adapt", SMALL, "u", STEPS=1, CONSTANT=0, BFLOAT16=0, INNER=0)(ctypes.byref(args))
