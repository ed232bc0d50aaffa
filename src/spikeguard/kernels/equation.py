"""The neuron, readable: a loop over time in plain autograd. Tests compare the fast kernels with this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from spikeguard.kernels.context import Context
from spikeguard.kernels.mode import LayerOutput, Mode, wide, widen
from spikeguard.surrogates import Surrogate


class Moving(Protocol):
    """How thresholds move: ``rate`` ``[...]`` and ``goal`` ``[T, ...]`` of each neuron."""

    @property
    def rate(self) -> Tensor: ...

    @property
    def goal(self) -> Tensor: ...


class _Kept(Context, Protocol):
    saved_tensors: tuple[Tensor, Tensor | None]
    surrogate: Surrogate


class _Step(torch.autograd.Function):
    """step(w) with a surrogate derivative."""

    @staticmethod
    def forward(ctx: _Kept, w: Tensor, surrogate: Surrogate, sharpness: Tensor | None) -> Tensor:
        ctx.save_for_backward(w, sharpness)
        ctx.surrogate = surrogate
        return (w >= 0).to(w.dtype)

    @staticmethod
    def backward(ctx: _Kept, g: Tensor) -> tuple[Tensor, None, None]:
        w, sharpness = ctx.saved_tensors
        return g * ctx.surrogate.derivative(w, sharpness), None, None


_step: Callable[[Tensor, Surrogate, Tensor | None], Tensor] = _Step.apply


def integrate(
    current: Tensor,
    decay: Tensor,
    threshold: Tensor,
    mode: Mode,
    noise: Tensor | None = None,
    sharpness: Tensor | None = None,
    want_u: bool = True,
    moving: Moving | None = None,
) -> LayerOutput:
    """Charge, fire, reset, for every step of ``current`` ``[T, N, ...]`` (or ``[1, N, ...]``, constant over
    time).

    ``decay`` is a scalar, or ``[T, ...]`` broadcastable to the currents. ``moving``: thresholds that move
    with the potential, ``threshold[t] = threshold[t-1] + rate (H[t] - goal[t])``.
    """
    dtype = current.dtype
    current, decay, threshold = widen(current), decay.to(wide(dtype)), threshold.to(wide(dtype))
    v = torch.full_like(current[0], mode.v_init)
    spikes, potentials = [], []
    for t in range(mode.timesteps):
        h = (decay[t] if decay.dim() else decay) * v + current[t if len(current) > 1 else 0]
        if noise is not None and mode.site == "membrane":
            h = h + noise[t]
        if moving is not None:
            threshold = threshold + moving.rate * (h - moving.goal[t])
        u = h - threshold
        w = mode.comparator_input(u, None if noise is None else noise[t])
        a = None if sharpness is None else sharpness[t]
        s = mode.surrogate.soft_step(w) if mode.smooth else _step(w, mode.surrogate, a)
        r = s.detach() if mode.detach_reset else s
        v = h * (1 - r) if mode.reset == "hard" else h - threshold * r
        spikes.append(s)
        potentials.append(u)
    u = torch.stack(potentials)
    penalty = None
    if mode.band is not None:
        hinge = (mode.band.delta - u.abs()).clamp(min=0.0)
        penalty = (hinge if mode.band.side == "both" else hinge * (u < 0)).mean()
    return LayerOutput(torch.stack(spikes).to(dtype), u, penalty)
