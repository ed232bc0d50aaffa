"""The memory layout of a current for the C++ pass, and tensors of the same layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """``[T, N, ...]`` as samples x rows x length in memory order; ``inner`` means channels-last."""

    samples: int
    rows: int
    length: int
    inner: bool
    height: int = 0
    width: int = 0

    @staticmethod
    def of(current: Tensor) -> Shape:
        n = current.shape[1]
        if current.dim() == 5:
            channels, height, width = current.shape[2:]
            if channels_last(current):
                return Shape(n, height * width, channels, True, height, width)
            return Shape(n, channels, height * width, False, height, width)
        return Shape(n, 1, current[0, 0].numel(), False)

    @property
    def channels(self) -> int:
        return self.length if self.inner else self.rows

    @property
    def step(self) -> int:
        return self.samples * self.rows * self.length


def channels_last(x: Tensor) -> bool:
    """Is ``[T, N, C, H, W]`` channels-last in memory?"""
    folded = x.flatten(0, 1)
    return folded.is_contiguous(memory_format=torch.channels_last) and not folded.is_contiguous()


def dense(x: Tensor, like: Shape) -> Tensor:
    """``[T, N, ...]`` in the layout of ``like``; a copy only if it has another one."""
    folded = x.flatten(0, 1)
    laid: Tensor = folded.contiguous(
        memory_format=torch.channels_last if like.inner else torch.contiguous_format
    ).unflatten(0, x.shape[:2])
    return laid


def empty(like: Shape, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for ``[T, N, ...]`` in the same layout."""
    t, n, *rest = sizes
    layout = torch.channels_last if like.inner else torch.contiguous_format
    made: Tensor = torch.empty((t * n, *rest), dtype=dtype, memory_format=layout, device="cpu").unflatten(
        0, (t, n)
    )
    return made
