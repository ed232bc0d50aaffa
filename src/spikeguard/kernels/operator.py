"""The layer of neurons as operators of torch: ``torch.compile`` and ``torch.export`` keep it whole.

``torch.ops.spikeguard.spikes`` computes what ``dispatch.integrate`` does in its plain case: no noise, no tap,
no penalty. Its backward pass is an operator, too, which integrates once more and has no derivative itself.
Exporters that know no operators of others get its forward pass as plain arithmetic.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from spikeguard.errors import UserError
from spikeguard.kernels import dispatch, equation
from spikeguard.kernels.context import Context
from spikeguard.kernels.mode import Mode
from spikeguard.kernels.shape import channels_last
from spikeguard.surrogates import Surrogate, Triangle

_LIBRARY = torch.library.Library("spikeguard", "DEF")
_SCALARS = "int timesteps, bool hard, bool detach, float v_init, str surrogate"
_LIBRARY.define(f"spikes(Tensor current, Tensor decay, Tensor threshold, {_SCALARS}) -> Tensor")
_LIBRARY.define(
    f"spikes_backward(Tensor g, Tensor current, Tensor decay, Tensor threshold, {_SCALARS}) "
    "-> (Tensor, Tensor, Tensor)"
)
_SURROGATES: dict[str, Surrogate] = {}
Scalars = tuple[int, bool, bool, float, str]
"""Time steps; hard reset? reset detached? start of the potential; the surrogate's key."""


def key(surrogate: Surrogate) -> str:
    """A text that stands for a surrogate in a graph, in this process."""
    text = f"{type(surrogate).__module__}.{surrogate!r}"
    _SURROGATES.setdefault(text, surrogate)
    return text


def spikes(current: Tensor, decay: Tensor, threshold: Tensor, scalars: Scalars) -> Tensor:
    """Spikes ``[T, N, ...]`` of currents ``[T or 1, N, ...]``, as one node of a graph; for ONNX as many."""
    if "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export():
        return _arithmetic(current, decay, threshold, *scalars)
    out: Tensor = torch.ops.spikeguard.spikes(current, decay, threshold, *scalars)
    return out


def decompositions() -> dict[torch._ops.OperatorBase, Callable[..., Tensor]]:
    """What ``run_decompositions`` of an exported program needs to write layers of neurons as arithmetic.

    For runtimes without spikeguard. Each layer becomes its equation, once a time step, without a gradient.

    >>> program = torch.export.export(sg.LIF(decay=0.5), (torch.rand(3, 2, 4),))
    >>> plain = program.run_decompositions(sg.neurons.decompositions())
    >>> "spikeguard" in str(program.graph), "spikeguard" in str(plain.graph)
    (True, False)
    """
    return {torch.ops.spikeguard.spikes.default: _arithmetic}


@torch.no_grad()
def _arithmetic(current: Tensor, decay: Tensor, threshold: Tensor, *scalars: object) -> Tensor:
    mode = _mode(scalars, backward=False)  # type: ignore[arg-type]
    return equation.integrate(current, decay, threshold, mode, want_u=False).spikes


def _mode(scalars: Scalars, backward: bool) -> Mode:
    timesteps, hard, detach, v_init, surrogate = scalars
    if backward and surrogate not in _SURROGATES:
        raise UserError(
            f"no gradient here: the surrogate {surrogate} is of the process that exported this graph"
        )
    reset: Literal["hard", "soft"] = "hard" if hard else "soft"
    return Mode(timesteps, _SURROGATES.get(surrogate, Triangle()), reset, detach, v_init)


def _like(current: Tensor, steps: int) -> Tensor:
    """An empty tensor of ``steps`` steps, channels last in memory if the current is."""
    sizes = (steps, *current.shape[1:])
    if not channels_last(current):
        return current.new_empty(sizes)
    t, n, c, h, w = sizes
    return current.new_empty((t, n, h, w, c)).movedim(-1, 2)


def _laid_out(values: Tensor, like: Tensor) -> Tensor:
    """The values with the strides that the graph counts on, copied only if they have others."""
    return values if values.stride() == like.stride() else torch.empty_like(like).copy_(values)


def _spikes(current: Tensor, decay: Tensor, threshold: Tensor, *scalars: object) -> Tensor:
    mode = _mode(scalars, backward=False)  # type: ignore[arg-type]
    with torch.no_grad():
        out = dispatch.integrate(current, dispatch.Cell(decay, threshold), dispatch.Settings(mode))
    return _laid_out(out.spikes, _like(current, mode.timesteps))


def _fake_spikes(current: Tensor, decay: Tensor, threshold: Tensor, timesteps: int, *rest: object) -> Tensor:
    return _like(current, timesteps)


def _spikes_backward(
    g: Tensor, current: Tensor, decay: Tensor, threshold: Tensor, *scalars: object
) -> tuple[Tensor, Tensor, Tensor]:
    mode = _mode(scalars, backward=True)  # type: ignore[arg-type]
    # an operator runs below autograd, where nothing would be recorded
    recorded = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)
    with recorded, torch.enable_grad():
        given = [t.detach().requires_grad_() for t in (current, decay, threshold)]
        cell = dispatch.Cell(given[1], given[2])
        out = dispatch.integrate(given[0], cell, dispatch.Settings(mode))
        grads = torch.autograd.grad(out.spikes, given, g)
    first, *rest = (t.to(s.dtype) for t, s in zip(grads, given, strict=True))
    return _laid_out(first, _like(current, len(current))), rest[0], rest[1]


def _fake_spikes_backward(
    g: Tensor, current: Tensor, decay: Tensor, threshold: Tensor, *scalars: object
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(current, len(current)), torch.empty_like(decay), torch.empty_like(threshold)


class _Kept(Context, Protocol):
    saved_tensors: tuple[Tensor, Tensor, Tensor]
    scalars: tuple[object, ...]


def _setup(ctx: _Kept, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.scalars = inputs[3:]


def _backward(ctx: _Kept, g: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.spikeguard.spikes_backward(g, *ctx.saved_tensors, *ctx.scalars)
    return (*grads, *(None for _ in ctx.scalars))


def _no_second(ctx: object, *grads: Tensor) -> tuple[None, ...]:
    raise UserError("spikes have no second derivative: take the gradient without create_graph")


for _name, _run, _fake in (
    ("spikes", _spikes, _fake_spikes),
    ("spikes_backward", _spikes_backward, _fake_spikes_backward),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"spikeguard::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd("spikeguard::spikes", _backward, setup_context=_setup, lib=_LIBRARY)
torch.library.register_autograd("spikeguard::spikes_backward", _no_second, lib=_LIBRARY)
