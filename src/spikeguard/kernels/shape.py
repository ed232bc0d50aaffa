"""How a current lies in memory, as the C++ pass sees it, and tensors that lie as it does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """``[T, N, ...]`` as samples x rows x length in the order in which it lies in memory; ``inner``.

    Channels-last.
    """

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
    """Does ``[T, N, C, H, W]`` have its channels side by side in memory?"""
    folded = x.flatten(0, 1)
    return folded.is_contiguous(memory_format=torch.channels_last) and not folded.is_contiguous()


def dense(x: Tensor, like: Shape) -> Tensor:
    """``[T, N, ...]`` laid out as ``like`` says; a copy only if it is not."""
    folded = x.flatten(0, 1)
    laid: Tensor = folded.contiguous(
        memory_format=torch.channels_last if like.inner else torch.contiguous_format
    ).unflatten(0, x.shape[:2])
    return laid


def empty(like: Shape, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for ``[T, N, ...]``, laid out likewise."""
    t, n, *rest = sizes
    layout = torch.channels_last if like.inner else torch.contiguous_format
    made: Tensor = torch.empty((t * n, *rest), dtype=dtype, memory_format=layout).unflatten(0, (t, n))
    return made
