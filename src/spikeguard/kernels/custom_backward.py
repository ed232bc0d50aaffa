"""A layer's spikes with another backward pass over the whole sequence; forward values do not change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeguard.kernels.context import Context
from spikeguard.kernels.mode import widen


@dataclass(frozen=True)
class LayerPass:
    """A forward pass of a layer: currents, spikes, potentials ``u`` ``[T, N, ...]``, decay and threshold."""

    current: Tensor
    spikes: Tensor
    u: Tensor
    decay: float
    threshold: float


class SequenceRule(Protocol):
    """A backward pass of a whole layer."""

    def back(self, g: Tensor, layer: LayerPass, /) -> Tensor:
        """The gradient of the currents from the gradient of the spikes, both ``[T, N, ...]``."""


class _Kept(Context, Protocol):
    saved_tensors: tuple[Tensor, Tensor, Tensor]
    rest: tuple[float, float, SequenceRule]


class _Custom(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Kept,
        current: Tensor,
        spikes: Tensor,
        u: Tensor,
        decay: float,
        threshold: float,
        rule: SequenceRule,
    ) -> Tensor:
        ctx.save_for_backward(current, spikes, u)
        ctx.rest = (decay, threshold, rule)
        return spikes.view_as(spikes)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Kept, g: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        current, spikes, u = ctx.saved_tensors
        decay, threshold, rule = ctx.rest
        done = LayerPass(widen(current), widen(spikes), u, decay, threshold)
        return rule.back(widen(g), done).to(current.dtype), None, None, None, None, None


custom_backward: Callable[[Tensor, Tensor, Tensor, float, float, SequenceRule], Tensor] = _Custom.apply
