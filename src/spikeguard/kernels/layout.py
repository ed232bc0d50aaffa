"""Views of ``[T, N, ...]`` as ``[T, M]`` in memory order, whatever that order is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The memory order of the dimensions after time, sample by sample; channels-last is preserved."""

    order: tuple[int, ...]
    sizes: tuple[int, ...]

    @staticmethod
    def of(x: Tensor) -> Layout:
        inner = range(2, x.dim())
        strides = x.stride()
        order = (0, 1, *sorted(inner, key=lambda d: (-strides[d] if x.shape[d] > 1 else 0, d)))
        return Layout(order, tuple(x.shape[d] for d in order[1:]))

    def flat(self, x: Tensor) -> Tensor:
        """``[T, N, ...]`` to ``[T, M]``; a copy only if ``x`` has another memory order."""
        return x.permute(self.order).reshape(x.shape[0], -1)

    def full(self, x: Tensor) -> Tensor:
        """``[T, M]`` back to ``[T, N, ...]``, always a view."""
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return x.view(x.shape[0], *self.sizes).permute(back)
