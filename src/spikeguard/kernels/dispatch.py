"""From currents to spikes by the fastest way that can do it.

Three ways compute the same equation: the readable loop (``equation``), elementwise kernels compiled by torch
(``compiled``), and one pass in C++ (``cpp``). Only this file chooses between them, and only this file knows
who applies batch norm, noise and 2x2 pooling: the C++ pass does all three itself; for the other two they
are separate passes over memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeguard.errors import UserError
from spikeguard.kernels import compiled, cpp, equation, gaussian, norms
from spikeguard.kernels.cpp_build import BuildError
from spikeguard.kernels.custom_backward import SequenceRule, custom_backward
from spikeguard.kernels.equation import Moving
from spikeguard.kernels.layout import Layout
from spikeguard.kernels.mode import LayerOutput, Mode, NoiseKeys


@dataclass(frozen=True)
class Cell:
    """Constants of the neurons: decay (a scalar or ``[T, N or 1, ...]``), threshold, and how that moves."""

    decay: Tensor
    threshold: Tensor
    moving: Moving | None = None


@dataclass(frozen=True)
class Settings:
    """Everything else about one call of a layer.

    ``norm`` comes before the neurons, 2x2 average ``pool`` after them. ``recomputing``: the norm saw this
    batch before. ``want_u``: return the potentials. ``sharpness``: of the surrogate, or a function of the
    potentials that returns it. ``rule``: another backward pass. ``push``: added to ``u`` in the comparator.
    """

    mode: Mode
    noise: NoiseKeys | None = None
    sharpness: cpp.Sharpness = None
    want_u: bool = False
    rule: SequenceRule | None = None
    norm: nn.BatchNorm2d | None = None
    recomputing: bool = False
    pool: bool = False
    push: Tensor | None = None


def integrate(current: Tensor, cell: Cell, settings: Settings) -> LayerOutput:
    """Spikes ``[T, N, ...]`` of a current ``[T or 1, N, ...]``, with potentials and penalty if requested."""
    if settings.rule is not None:
        return _custom(current, cell, settings, settings.rule)
    if _native(current, cell, settings):
        try:
            return _in_one_pass(current, cell, settings)
        except BuildError:  # nothing has been computed yet, and from now on another way is taken
            pass
    current, settings = normalize_first(current, settings)
    mode, noise = settings.mode, None
    if settings.noise is not None:
        noise = _draw(current, settings.mode.timesteps, settings.noise)
    if settings.push is not None:
        out = _readable(current, cell, settings, _pushed(settings, noise))
    elif cell.moving is None:
        out = compiled.integrate(
            current, cell.decay, cell.threshold, mode, noise, settings.sharpness, settings.want_u
        )
    else:
        out = _readable(current, cell, settings, noise)
    return out._replace(spikes=pooled(out.spikes)) if settings.pool else out


def _pushed(settings: Settings, noise: Tensor | None) -> Tensor:
    """What is added to ``u`` in the comparator: the push, and noise."""
    assert settings.push is not None
    if noise is None:
        return settings.push
    if settings.mode.site != "compare":
        raise UserError(f"spikes cannot be held where noise has the site {settings.mode.site!r}")
    return settings.push + noise


def normalize_first(current: Tensor, settings: Settings) -> tuple[Tensor, Settings]:
    """The current after its batch norm, and the settings of what remains to be done."""
    if settings.norm is None:
        return current, settings
    return norms.normalize(settings.norm, current, settings.recomputing), replace(settings, norm=None)


def relu_rates(current: Tensor, threshold: Tensor, timesteps: int, settings: Settings) -> Tensor:
    """``max(0, current) / threshold`` instead of spikes; the running averages of the norm do not move."""
    current, _ = normalize_first(current, replace(settings, recomputing=True))
    rates = (torch.relu(current) / threshold.to(current.dtype)).expand(timesteps, *current.shape[1:])
    return pooled(rates) if settings.pool else rates


def pooled(spikes: Tensor) -> Tensor:
    """The mean of 2x2 pixels, ``[T, N, C, H, W] -> [T, N, C, H/2, W/2]``."""
    averages: Tensor = F.avg_pool2d(spikes.flatten(0, 1), 2).unflatten(0, spikes.shape[:2])
    return averages


def _native(current: Tensor, cell: Cell, settings: Settings) -> bool:
    """Does the C++ pass compute this call? It does not differentiate by the goal of a moving threshold."""
    if settings.norm is not None and not norms.is_fusable(settings.norm):
        return False
    if cell.moving is not None and cell.moving.goal.requires_grad:
        return False
    if settings.push is not None:
        return False
    return cpp.can(current, settings.mode, current.numel())


def _in_one_pass(current: Tensor, cell: Cell, settings: Settings) -> LayerOutput:
    norm = None if settings.norm is None else norms.norm_state(settings.norm, settings.recomputing)
    inside = settings.pool and cpp.can_pool(current)
    call = cpp.Call(
        settings.mode, norm, settings.noise, settings.sharpness, settings.want_u, inside, cell.moving
    )
    out = cpp.integrate(current, cell.decay, cell.threshold, call)
    return out._replace(spikes=pooled(out.spikes)) if settings.pool and not inside else out


def _readable(current: Tensor, cell: Cell, settings: Settings, noise: Tensor | None) -> LayerOutput:
    """The readable loop: slower, and the only one besides C++ whose thresholds can move."""
    constants = (cell.decay, cell.threshold, settings.mode, noise)
    sharpness = None
    if callable(settings.sharpness):
        with torch.no_grad():
            u = equation.integrate(current, *constants, moving=cell.moving).u
        assert u is not None
        sharpness = settings.sharpness(u)
    return equation.integrate(current, *constants, sharpness, settings.want_u, cell.moving)


def _custom(current: Tensor, cell: Cell, settings: Settings, rule: SequenceRule) -> LayerOutput:
    """The same spikes, to the bit, with the backward pass of ``rule``.

    Potentials and penalty carry no gradient then.
    """
    with torch.no_grad():
        out = integrate(current, cell, replace(settings, sharpness=None, want_u=True, rule=None, pool=False))
    assert out.u is not None
    # the running averages have moved in the pass above
    current, _ = normalize_first(current, replace(settings, recomputing=True))
    current = current.expand(settings.mode.timesteps, *current.shape[1:])
    decay, threshold = float(cell.decay.detach().mean()), float(cell.threshold.detach())
    spikes = custom_backward(current, out.spikes, out.u, decay, threshold, rule)
    return out._replace(spikes=pooled(spikes) if settings.pool else spikes)


def _draw(current: Tensor, timesteps: int, noise: NoiseKeys) -> Tensor:
    """The noise ``[T, N, ...]`` of these keys, laid out in memory like the current."""
    layout = Layout.of(current)
    values = gaussian.normal(noise.keys, math.prod(layout.sizes[1:]), timesteps, noise.sigma)
    dtype = torch.float64 if current.dtype == torch.float64 else torch.float32
    return layout.full(values.to(dtype).reshape(timesteps, -1))
