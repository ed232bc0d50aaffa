"""One recording of a layer of neurons, step by step, and the spike whose derivative is ours."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from spikeguard.kernels.context import Context
from spikeguard.kernels.gaussian import normal
from spikeguard.kernels.mode import wide, widen
from spikeguard.neurons.settings import Noise
from spikeguard.random import draws
from spikeguard.random.streams import NoiseStream
from spikeguard.surrogates import Surrogate


class Trail:
    """The potentials of a recording, for a surrogate that adapts to them.

    It observes them once, all steps together, when the backward pass needs the first derivative.
    """

    def __init__(self, surrogate: Surrogate, at_once: bool) -> None:
        self.surrogate, self.at_once, self.steps = surrogate, at_once, list[Tensor]()
        self.sharpness: Tensor | None = None
        self.observed = False

    def at(self, step: int, u: Tensor) -> Tensor | None:
        """The sharpness of one step, whose potential is ``u``."""
        if not self.observed:
            self.observed = True
            self.sharpness = self.surrogate.observe(
                self.steps[0] if self.at_once else torch.stack(self.steps)
            )
        a = self.sharpness
        if a is None or a.dim() == 0:
            return a
        return a.expand_as(self.steps[0]).reshape(u.shape) if self.at_once else a[min(step, len(a) - 1)]


class Run:
    """The steps of a layer since its state was reset.

    ``step``: how many steps it has computed. ``noise``: the last step's. ``u``: potentials, where they are
    kept. ``keys``: of the noise, by stream; a pass that is computed again has those of the first one.
    """

    def __init__(self, keys: dict[int, int] | None = None, keep: bool = False) -> None:
        self.step = 0
        self.noise: Tensor | None = None
        self.u: list[Tensor] | None = [] if keep else None
        self.keys = {} if keys is None else keys
        self.trails: dict[int, Trail] = {}
        self._free: int | None = None
        self._second: tuple[NoiseStream | None, Noise, Tensor] | None = None

    def key(self, source: NoiseStream | None) -> int:
        """The key of this recording's noise; without a stream it comes from torch's generator, which
        checkpoints restore."""
        if source is None:
            if self._free is None:
                self._free = int(torch.randint(2**62, ()).item())
            return self._free
        if id(source) not in self.keys:
            self.keys[id(source)] = source.next()
        return self.keys[id(source)]

    def draw(self, like: Tensor, noise: Noise, source: NoiseStream | None, at_once: bool) -> Tensor:
        """Noise for one step ``[N, ...]``, or ``at_once`` for all steps ``[T, N, ...]``.

        The numbers of a sample depend on stream, step and sample alone.
        """
        if not at_once and self._second is not None:
            (whose, of, drawn), self._second = self._second, None
            if whose is source and of == noise and drawn.shape == like.shape:
                return drawn
        steps = like if at_once else like[None]
        pair = not at_once and self.step % 2 == 0  # a key gives the noise of two steps, at the cost of one
        count = len(steps) + pair
        samples = torch.arange(steps.shape[1], device=like.device)
        pairs = draws.step_keys(self.key(source), samples, self.step + count + 1)
        first = self.step // 2
        keys = torch.cat([pairs[:, :1], pairs[:, 1 + first :]], 1)
        skipped = self.step - 2 * first
        drawn = normal(keys, steps[0, 0].numel(), skipped + count, noise.sigma)[skipped:]
        values = drawn.to(wide(like.dtype)).view(count, *steps.shape[1:])
        if pair:
            self._second = source, noise, values[1]
        return values if at_once else values[0]

    def trail(self, surrogate: Surrogate, at_once: bool) -> Trail | None:
        """Where the surrogate sees this recording's potentials, if it wants to."""
        if type(surrogate).observe is Surrogate.observe:
            return None
        return self.trails.setdefault(id(surrogate), Trail(surrogate, at_once))


class _Kept(Context, Protocol):
    saved_tensors: tuple[Tensor]
    rest: tuple[Surrogate, Trail | None, int]


def in_band(u: Tensor, drawn: Tensor, noise: Noise) -> Tensor:
    """The noise of neurons of potential ``u``: all of it, or at site 'band' that near the threshold."""
    return torch.where(u.detach().abs() < noise.noise_band, drawn, 0.0) if noise.site == "band" else drawn


class Fire(torch.autograd.Function):
    """``value`` forward, ``g(u)`` backward."""

    @staticmethod
    def forward(ctx: _Kept, u: Tensor, value: Tensor, surrogate: Surrogate, trail: Trail | None) -> Tensor:
        ctx.save_for_backward(u)
        ctx.rest = surrogate, trail, 0 if trail is None else len(trail.steps) - 1
        return value.view_as(value)

    @staticmethod
    def backward(ctx: _Kept, g: Tensor) -> tuple[Tensor, None, None, None]:
        (u,) = ctx.saved_tensors
        surrogate, trail, step = ctx.rest
        slope = surrogate.derivative(widen(u), None if trail is None else trail.at(step, u))
        return (g * slope).to(u.dtype), None, None, None
