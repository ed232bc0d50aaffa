"""The layer of neurons in C++ (``neuron.cpp``): batch norm, time loop, noise, band penalty and 2x2 pooling in
one pass each way.

A library is built for each combination of settings (about a second, kept on disk) and called by ctypes. The
backward pass keeps only the currents and computes potentials and noise again. CPU only, float32 and bfloat16;
``compiled`` does the rest.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeguard.kernels import cpp_build
from spikeguard.kernels.context import Context
from spikeguard.kernels.cpp_build import BACKWARD, BAND_SIDES, FORWARD, SMALL, Args
from spikeguard.kernels.equation import Moving
from spikeguard.kernels.expressions import expression
from spikeguard.kernels.mode import LayerOutput, Mode, NoiseKeys, Norm
from spikeguard.kernels.needs_grad import needs_grad
from spikeguard.kernels.shape import Shape, channels_last, dense, empty

_NOISE = {"compare": 1, "membrane": 2, "band": 3}
Sharpness = Tensor | Callable[[Tensor], Tensor | None] | None


@dataclass(frozen=True)
class Call:
    """Settings of one call: everything but the tensors that gradients flow to."""

    mode: Mode
    norm: Norm | None = None
    draw: NoiseKeys | None = None
    sharpness: Sharpness = None
    want_u: bool = False
    pool: bool = False
    moving: Moving | None = None


def can(current: Tensor, mode: Mode, elements: int) -> bool:
    """Does C++ compute this layer? A function of the kind of work and its size, so that runs repeat."""
    if (
        current.device.type != "cpu"
        or current.dtype not in (torch.float32, torch.bfloat16)
        or mode.smooth
        or expression(mode.surrogate) is None
    ):
        return False
    return cpp_build.use(elements)


def can_pool(current: Tensor) -> bool:
    """Does the same pass do the pooling? Yes if the images are channels-last in memory."""
    return current.dim() == 5 and channels_last(current)


def integrate(current: Tensor, decay: Tensor, threshold: Tensor, call: Call) -> LayerOutput:
    """Spikes ``[T, N, ...]`` of currents ``[T or 1, N, ...]``, as ``equation.integrate``.

    ``call.norm`` is applied before, ``call.pool`` after the neurons.
    """
    norm, rate = call.norm, call.moving.rate if call.moving else None
    weight, bias = (norm.weight, norm.bias) if norm else (None, None)
    return LayerOutput(*_integrate(current, decay, threshold, rate, weight, bias, call))


class _Affine(NamedTuple):
    """A norm is ``scale x + shift`` for each channel; mean, inverse standard deviation: ``[C]``, float32."""

    mean: Tensor
    inverse: Tensor
    scale: Tensor
    shift: Tensor


class _Layer:
    """Shape, scalars and tensors of one call, ready for a pass."""

    def __init__(self, current: Tensor, decay: Tensor, threshold: Tensor, call: Call) -> None:
        self.call, self.shape = call, Shape.of(current)
        self.current = dense(current, self.shape)
        self.constant = len(current) < call.mode.timesteps
        mode, draw = call.mode, call.draw
        self.args = Args(
            self.shape.samples, self.shape.rows, self.shape.length, self.shape.height, self.shape.width
        )
        self.args.threads = torch.get_num_threads() if self.shape.step * mode.timesteps > 2**14 else 1
        self.args.threshold, self.args.start = float(threshold), mode.v_init
        self.own: dict[str, Tensor] = {}  # of every neuron
        self.decay_sizes = decay.shape
        if decay.dim():
            self.own["decays"] = dense(
                decay.detach().float().expand(mode.timesteps, decay.shape[1], *current.shape[2:]), self.shape
            )
        else:
            self.args.decay = float(decay)
        if call.moving:
            sizes = current.shape[2:]
            rate = call.moving.rate.detach().float().expand(sizes)[None, None]
            goal = call.moving.goal.detach().float()[:, None].expand(mode.timesteps, 1, *sizes)
            self.own |= {"rate": dense(rate, self.shape), "goal": dense(goal, self.shape)}
        self.args.delta = mode.band.delta if mode.band else 0.0
        self.args.sigma = draw.sigma if draw else 0.0
        self.args.noise_band = mode.noise_band
        self.flags = {
            "STEPS": mode.timesteps,
            "CONSTANT": int(self.constant),
            "BFLOAT16": int(current.dtype == torch.bfloat16),
            "HARD": int(mode.reset == "hard"),
            "NOISE": _NOISE[mode.site] if draw else 0,
            "NORM": 0 if call.norm is None else 2 if call.norm.batch else 1,
            "INNER": int(self.shape.inner),
            "POOL": int(call.pool),
            "OWN": 0 if not decay.dim() else 1 if decay.shape[1] == current.shape[1] else 2,
            "MOVING": int(call.moving is not None),
        }
        self.keys = None if draw is None else draw.keys.contiguous()
        # built before the averages of the norm move: another way may have to do it
        self.forward_flags = {
            "WANT_U": int(call.want_u or callable(call.sharpness)),
            "BAND": BAND_SIDES[mode.band.side] if mode.band else 0,
        }
        cpp_build.function("forward", FORWARD, "u", **self.flags, **self.forward_flags)
        self.affine = None if call.norm is None else self.statistics(call.norm)

    def run(
        self,
        which: int,
        name: str,
        sums: int = 0,
        flags: dict[str, int] | None = None,
        **tensors: Tensor | None,
    ) -> Tensor:
        held = torch.zeros(max(sums, 1), dtype=torch.float64, device="cpu")
        channels = self.affine._asdict() if self.affine else {}
        channels.pop("inverse", None)
        for key, tensor in {
            "current": self.current,
            "keys": self.keys,
            **self.own,
            **channels,
            **tensors,
            "sums": held,
        }.items():
            setattr(self.args, key, None if tensor is None else tensor.data_ptr())
        derivative = expression(self.call.mode.surrogate) if which == BACKWARD else "u"
        assert derivative is not None
        if which == SMALL:  # time is only more samples there
            self.args.samples = self.shape.samples * len(self.current)
            mode = {
                "STEPS": 1,
                "CONSTANT": 0,
                "BFLOAT16": self.flags["BFLOAT16"],
                "INNER": self.flags["INNER"],
            }
        else:
            self.args.samples, mode = self.shape.samples, self.flags
        cpp_build.function(name, which, derivative, **mode, **(flags or {}))(ctypes.byref(self.args))
        return held

    def statistics(self, norm: Norm) -> _Affine:
        """From the batch, which moves the running averages, or from the running averages."""
        self.affine = None
        mean, variance = norm.running_mean.float(), norm.running_var.float()
        if norm.batch:
            channels, height, width = self.current.shape[2:]
            pivot = (
                self.current[0, 0, :, height // 2, width // 2].float().contiguous()
            )  # near the mean, so that squares keep their digits
            sums = self.run(SMALL, "moments", 2 * channels, mean=pivot).view(2, channels) / self.count
            mean, variance = (
                (pivot.double() + sums[0]).float(),
                (sums[1] - sums[0] ** 2).clamp(min=0.0).float(),
            )
            norm.remember(mean, variance, self.count)
        inverse = torch.rsqrt(variance + norm.eps)
        scale = norm.weight.detach().float() * inverse
        return _Affine(mean, inverse, scale, norm.bias.detach().float() - mean * scale)

    @property
    def count(self) -> int:
        """Values of one channel."""
        return self.shape.step * len(self.current) // self.shape.channels


class _Kept(Context, Protocol):
    saved_tensors: tuple[Tensor, Tensor | None, Tensor | None]
    layer: _Layer


class _Integrate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Kept,
        current: Tensor,
        decay: Tensor,
        threshold: Tensor,
        rate: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        call: Call,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        layer = _Layer(current.detach(), decay, threshold, call)
        mode, sizes = call.mode, tuple(current.shape[1:])
        full = (mode.timesteps, *sizes)
        out = (*full[:-2], full[-2] // 2, full[-1] // 2) if call.pool else full
        spikes = empty(layer.shape, out, current.dtype)
        want_u = call.want_u or callable(call.sharpness)
        u = empty(layer.shape, full, torch.float32) if want_u else None
        band = layer.forward_flags["BAND"]
        sums = layer.run(FORWARD, "forward", 1, layer.forward_flags, spikes=spikes, u=u)
        penalty = (sums[0] / (mode.timesteps * layer.shape.step)).float() if band else None
        sharpness = call.sharpness
        if callable(sharpness):
            assert u is not None
            sharpness = sharpness(u)
        saved = None if sharpness is None else dense(sharpness.float(), layer.shape)
        ctx.save_for_backward(layer.current, saved, layer.own.pop("decays", None))
        ctx.layer = layer
        del layer.current  # kept among the saved tensors only, where a checkpoint may drop it
        ctx.set_materialize_grads(False)
        return spikes, u if call.want_u else None, penalty

    @staticmethod
    @once_differentiable  # a second derivative raises instead of returning wrong values
    def backward(
        ctx: _Kept, g_spikes: Tensor | None, g_u: Tensor | None, g_penalty: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        layer = ctx.layer
        layer.current, sharpness, decays = ctx.saved_tensors
        call, mode, shape = layer.call, layer.call.mode, layer.shape
        dtype = layer.current.dtype
        if g_spikes is None:
            t, n, *rest = (mode.timesteps, *layer.current.shape[1:])
            rest = [*rest[:-2], rest[-2] // 2, rest[-1] // 2] if call.pool else rest
            g_spikes = torch.zeros(t, n, *rest, dtype=dtype, device="cpu")
        moving = call.moving is not None
        scalars = needs_grad(ctx, 2) or (decays is None and needs_grad(ctx, 1))
        affine = needs_grad(ctx, 4, 3 + moving) or needs_grad(ctx, 5, 4 + moving)
        own = (decays is not None and needs_grad(ctx, 1)) or (moving and needs_grad(ctx, 3))
        full = (mode.timesteps, *layer.current.shape[1:])
        g_decays = empty(shape, full, torch.float32) if own and decays is not None else None
        g_rate = empty(shape, (1, *full[1:]), torch.float32) if own and moving else None
        batch = call.norm is not None and call.norm.batch
        affine = affine or batch
        flags = {
            "DETACH": int(mode.detach_reset),
            "BAND": BAND_SIDES[mode.band.side] if mode.band and g_penalty is not None else 0,
            "G_BAND": int(mode.band is not None and g_penalty is not None),
            "G_U": int(g_u is not None),
            "SHARP": int(sharpness is not None),
            "SCALARS": int(scalars),
            "AFFINE": int(affine),
            "G_OWN": int(own),
        }
        layer.args.sharpness = mode.surrogate.sharpness
        g_current = empty(shape, tuple(layer.current.shape), dtype)
        sums = layer.run(
            BACKWARD,
            "backward",
            2 * scalars + 2 * shape.channels * affine,
            flags,
            g_spikes=dense(g_spikes, shape),
            g_current=g_current,
            g_u=None if g_u is None else dense(g_u.float(), shape),
            g_band=None if g_penalty is None else g_penalty.float(),
            sharp=sharpness,
            decays=decays,
            g_decays=g_decays,
            g_rate=g_rate,
        )
        g_decay, g_threshold = (sums[0], sums[1]) if scalars else (None, None)
        if decays is not None:
            g_decay = None if g_decays is None else g_decays.sum_to_size(layer.decay_sizes)
        g_weight = g_bias = None
        if affine and (known := layer.affine):
            kept = sums[2 * scalars :].view(2, shape.channels).float()
            g_bias, g_weight = kept[0], kept[1] * known.inverse
            if batch:
                share = -known.scale / layer.count
                slope = share * g_weight * known.inverse
                layer.run(
                    SMALL,
                    "spread",
                    g_current=g_current,
                    shift=slope,
                    mean=share * g_bias - slope * known.mean,
                )
        del layer.current
        return (
            g_current,
            g_decay,
            g_threshold,
            None if g_rate is None else g_rate[0].sum(0),
            g_weight,
            g_bias,
            None,
        )


_integrate: Callable[
    [Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Call],
    tuple[Tensor, Tensor | None, Tensor | None],
] = _Integrate.apply
