"""The neuron in one pass over memory: the loop over time is one elementwise kernel each way, on ``[T, M]``.

The backward pass is written by hand. It reads the currents again, recomputes the potentials (of size
``[T, M]`` only the currents are kept), and adds the gradient of the band penalty. Both passes are plain
functions of tensors, so ``torch.compile`` turns each into one loop; without a compiler they run as they are.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeguard.kernels import compiler
from spikeguard.kernels.context import Context
from spikeguard.kernels.layout import Layout
from spikeguard.kernels.mode import LayerOutput, Mode, wide, widen
from spikeguard.surrogates import Stretched, Triangle

_ANY = Triangle()
P = ParamSpec("P")
R = TypeVar("R")
Forward = Callable[[Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor | None, Tensor | None]]
"""Spikes, potentials and penalty of currents, noise, decay and threshold."""


class Backward(Protocol):
    """Gradients of currents, decay and threshold, the last two only if they are needed."""

    def __call__(
        self,
        g_spikes: Tensor,
        g_u: Tensor | None,
        g_penalty: Tensor | None,
        current: Tensor,
        noise: Tensor | None,
        sharpness: Tensor | None,
        decay: Tensor,
        threshold: Tensor,
        /,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]: ...


def _step(
    mode: Mode,
    t: int,
    v: Tensor | float,
    current: Tensor,
    noise: Tensor | None,
    decay: Tensor,
    threshold: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One time step: potential h, distance to the threshold u, step input w, spike s, next potential."""
    h = (decay[t] if decay.dim() else decay) * v + widen(current[t if current.shape[0] > 1 else 0])
    if noise is not None and mode.site == "membrane":
        h = h + noise[t]
    u = h - threshold
    w = mode.comparator_input(u, None if noise is None else noise[t])
    s = mode.surrogate.soft_step(w) if mode.smooth else (w >= 0).to(w.dtype)
    return h, u, w, s, (h * (1 - s) if mode.reset == "hard" else h - threshold * s)


def _forward(mode: Mode, want_u: bool) -> Forward:
    def forward(
        current: Tensor, noise: Tensor | None, decay: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        v: Tensor | float = mode.v_init
        spikes, potentials, hinge = [], [], None
        for t in range(mode.timesteps):
            _, u, _, s, v = _step(mode, t, v, current, noise, decay, threshold)
            spikes.append(s.to(current.dtype))
            if want_u:
                potentials.append(u)
            if mode.band is not None:
                inside = (mode.band.delta - u.abs()).clamp(min=0.0)
                inside = inside if mode.band.side == "both" else inside * (u < 0)
                hinge = inside if hinge is None else hinge + inside
        return (
            torch.stack(spikes),
            torch.stack(potentials) if want_u else None,
            None if hinge is None else hinge.mean() / mode.timesteps,
        )

    return forward


def _backward(mode: Mode, want_scalars: bool) -> Backward:
    def backward(
        g_spikes: Tensor,
        g_u: Tensor | None,
        g_penalty: Tensor | None,
        current: Tensor,
        noise: Tensor | None,
        sharpness: Tensor | None,
        decay: Tensor,
        threshold: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        past: list[tuple[Tensor | float, Tensor, Tensor, Tensor, Tensor]] = []
        v: Tensor | float = mode.v_init
        for t in range(mode.timesteps):
            before = v
            h, u, w, s, v = _step(mode, t, v, current, noise, decay, threshold)
            past.append((before, h, u, w, s))
        grads: list[Tensor] = []
        g_v = torch.zeros_like(past[0][1])
        g_decay = torch.zeros_like(g_v)
        g_decays: list[Tensor] = []
        g_threshold = torch.zeros_like(g_v)
        for t in reversed(range(mode.timesteps)):
            before, h, u, w, s = past[t]
            slope = mode.surrogate.derivative(
                w, sharpness[t] if sharpness is not None and sharpness.dim() else sharpness
            )
            g_s = widen(g_spikes[t])
            if not mode.detach_reset:
                g_s = g_s - g_v * (h if mode.reset == "hard" else threshold)
            g_here = g_s * slope
            if g_u is not None:
                g_here = g_here + g_u[t]
            if mode.band is not None and g_penalty is not None:
                inside = (
                    (u.abs() < mode.band.delta)
                    if mode.band.side == "both"
                    else ((u < 0) & (u > -mode.band.delta))
                )
                g_here = g_here - (g_penalty / (mode.timesteps * current.shape[1])) * torch.where(
                    inside, u.sign(), 0.0
                )
            g_h = g_here + (g_v * (1 - s) if mode.reset == "hard" else g_v)
            if want_scalars:
                g_threshold = g_threshold - g_here - (g_v * s if mode.reset == "soft" else 0.0)
                if decay.dim():
                    g_decays.append(g_h * before)
                else:
                    g_decay = g_decay + g_h * before
            grads.append(g_h)
            g_v = (decay[t] if decay.dim() else decay) * g_h
        if current.shape[0] > 1:
            g_current = torch.stack([g.to(current.dtype) for g in reversed(grads)])
        else:
            total = grads[0]
            for g in grads[1:]:
                total = total + g
            g_current = total.to(current.dtype)[None]
        if want_scalars and decay.dim():
            g_decay = torch.stack(list(reversed(g_decays)))
        elif want_scalars:
            g_decay = g_decay.sum()
        return g_current, g_decay if want_scalars else None, g_threshold.sum() if want_scalars else None

    return backward


def _compiled(f: Callable[P, R]) -> Callable[P, R]:
    """Compile a copy with a code object of its own: the compiler counts recompilations by code object."""
    assert isinstance(f, types.FunctionType)
    code = f.__code__.replace()
    return compiler.compile(
        types.FunctionType(code, f.__globals__, f.__name__, f.__defaults__, f.__closure__)
    )


@cache
def _forward_kernel(mode: Mode, want_u: bool, compiled: bool, *variant: object) -> Forward:
    """A kernel for each ``variant`` (tensors given, dtype, device), so that none is compiled twice."""
    kernel = _forward(mode, want_u)
    return _compiled(kernel) if compiled else kernel


@cache
def _backward_kernel(mode: Mode, want_scalars: bool, compiled: bool, *variant: object) -> Backward:
    """As ``_forward_kernel``."""
    kernel = _backward(mode, want_scalars)
    return _compiled(kernel) if compiled else kernel


def _variant(current: Tensor, *others: Tensor | None) -> tuple[object, ...]:
    return current.shape[0] > 1, *(
        (None if x is None else (x.dim(), x.dtype, x.device.type)) for x in (current, *others)
    )


class _Kept(Context, Protocol):
    saved_tensors: tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]
    mode: Mode
    compiled: bool


class _Integrate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Kept,
        current: Tensor,
        decay: Tensor,
        threshold: Tensor,
        mode: Mode,
        noise: Tensor | None,
        sharpness: Tensor | Callable[[Tensor], Tensor | None] | None,
        want_u: bool,
        compiled: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        key = mode if mode.smooth else replace(mode, surrogate=_ANY)
        current, decay, threshold = current.detach(), decay.detach(), threshold.detach()
        all_u = want_u or callable(sharpness)
        kernel = _forward_kernel(key, all_u, compiled, *_variant(current, noise, decay))
        spikes, u, penalty = kernel(current, noise, decay, threshold)
        if callable(sharpness):
            assert u is not None
            sharpness = sharpness(u)
        if sharpness is None and isinstance(
            mode.surrogate, Stretched
        ):  # a tensor, so that one kernel serves every sharpness
            sharpness = torch.tensor(mode.surrogate.sharpness, dtype=decay.dtype, device=current.device)
        ctx.save_for_backward(current, noise, sharpness, decay, threshold)
        ctx.mode, ctx.compiled = mode, compiled
        ctx.set_materialize_grads(False)
        return spikes, u if want_u else None, penalty

    @staticmethod
    @once_differentiable  # a second derivative raises instead of returning wrong values
    def backward(
        ctx: _Kept, g_spikes: Tensor | None, g_u: Tensor | None, g_penalty: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        current, noise, sharpness, decay, threshold = ctx.saved_tensors
        mode = ctx.mode
        if not mode.smooth:
            mode = replace(mode, surrogate=mode.surrogate.kernel())
        if g_spikes is None:
            g_spikes = torch.zeros(
                mode.timesteps, current.shape[1], dtype=current.dtype, device=current.device
            )
        variant = _variant(current, noise, sharpness, g_u, g_penalty, decay)
        kernel = _backward_kernel(mode, any(ctx.needs_input_grad[1:3]), ctx.compiled, *variant)
        g = kernel(g_spikes.contiguous(), g_u, g_penalty, current, noise, sharpness, decay, threshold)
        return *g, None, None, None, None, None


_integrate: Callable[
    [
        Tensor,
        Tensor,
        Tensor,
        Mode,
        Tensor | None,
        Tensor | Callable[[Tensor], Tensor | None] | None,
        bool,
        bool,
    ],
    tuple[Tensor, Tensor | None, Tensor | None],
] = _Integrate.apply


def integrate(
    current: Tensor,
    decay: Tensor,
    threshold: Tensor,
    mode: Mode,
    noise: Tensor | None = None,
    sharpness: Tensor | Callable[[Tensor], Tensor | None] | None = None,
    want_u: bool = True,
    compiled: bool | None = None,
) -> LayerOutput:
    """As ``equation.integrate``; ``compiled`` None compiles if the size is worth it and the machine can.

    ``sharpness`` may be a function of the potentials, called once they are known.
    """
    layout = Layout.of(current)
    flat = layout.flat(current)
    if callable(sharpness):
        observe = sharpness

        def sharpness(u: Tensor) -> Tensor | None:
            observed = observe(layout.full(u))
            return None if observed is None else layout.flat(observed)
    elif sharpness is not None:
        sharpness = layout.flat(sharpness)
    if compiled is None:
        soft = (
            mode.smooth and flat.device.type == "cpu"
        )  # another kernel for every sharpness: compiling costs more than it saves
        compiled = not soft and compiler.use(mode.timesteps * flat.shape[1], flat.device)
    spikes, u, penalty = _integrate(
        flat,
        layout.flat(decay.to(wide(flat.dtype)).expand(mode.timesteps, *current.shape[1:]))
        if decay.dim()
        else decay.to(wide(flat.dtype)),
        threshold.to(wide(flat.dtype)),
        mode,
        None if noise is None else layout.flat(noise),
        sharpness,
        want_u,
        compiled,
    )
    return LayerOutput(layout.full(spikes), None if u is None else layout.full(u), penalty)
