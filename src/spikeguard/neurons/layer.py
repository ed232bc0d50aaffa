"""A layer of spiking neurons, and LIF, IF and PLIF by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeguard.errors import UserError
from spikeguard.kernels import compiled, cpp, equation, norms
from spikeguard.kernels.custom_backward import SequenceRule, custom_backward
from spikeguard.kernels.layout import Layout
from spikeguard.kernels.mode import Band, LayerOutput, Mode, NoiseKeys
from spikeguard.neurons.modifiers import Chain, Homeostasis
from spikeguard.neurons.settings import Neuron, Noise
from spikeguard.random import draws
from spikeguard.random.streams import NoiseStream, StochasticModule
from spikeguard.surrogates import Surrogate, Triangle

Own = tuple[
    Tensor, Homeostasis | None
]  # decay, of all or of every neuron, and the moving threshold of a layer with dynamics


@dataclass
class TapRequest:
    """What an open tap asks of one neuron: None leaves it as it is.

    Where several are open, the last one wins.
    """

    surrogate: Surrogate | None = None
    noise: Noise | None = None
    source: NoiseStream | None = None
    band: Band | None = None
    detach_reset: bool | None = None
    smooth: bool | None = None
    relu: bool | None = None
    backward: SequenceRule | None = None
    on_current: Callable[[Tensor], None] | None = None
    on_potentials: Callable[[Tensor], None] | None = None
    on_penalty: Callable[[Tensor], None] | None = None


class Spiking(StochasticModule):
    """A layer of neurons: ``current [T, N, ...] -> spikes [T, N, ...]``; the potential starts at ``v_init``
    at each call.

    A current ``[1, N, ...]`` with ``timesteps=T`` is held constant over time. Spikes have the dtype of the
    current; potentials are computed in float32 (float64 for float64). Noise, if set, is drawn when training,
    and at inference if ``noise.at_eval``.
    """

    def __init__(self, spec: Neuron, noise: Noise | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.noise = noise
        self.dynamics = Chain()
        self.requests: list[TapRequest] = []
        self.recomputing = False
        threshold = torch.tensor(
            float(spec.threshold), dtype=torch.float64
        )  # exact; kernels round it to the dtype of the current
        if spec.learn_threshold:
            self.threshold: Tensor = nn.Parameter(threshold.float())
        else:
            self.register_buffer("threshold", threshold, persistent=False)
        if spec.kind == "plif":
            self.decay_logit = nn.Parameter(torch.tensor(math.log(spec.decay / (1 - spec.decay))))
        else:
            self.register_buffer(
                "fixed_decay", torch.tensor(float(spec.decay), dtype=torch.float64), persistent=False
            )

    @property
    def decay(self) -> Tensor:
        """Decay of the potential from step to step, a scalar tensor."""
        return torch.sigmoid(self.decay_logit) if self.spec.kind == "plif" else self.fixed_decay  # type: ignore[return-value]

    def extra_repr(self) -> str:
        return f"{self.spec}, noise={self.noise}"

    def forward(
        self,
        current: Tensor,
        timesteps: int | None = None,
        norm: nn.BatchNorm2d | None = None,
        pool: bool = False,
    ) -> Tensor:
        """Spikes ``[T, N, ...]`` of a current ``[T, N, ...]``; raises UserError on T = 0 or a missing batch
        dimension.

        ``norm`` is applied to the current first, ``pool`` averages 2x2 pixels of the spikes; both need ``[T,
        N, C, H, W]``.
        """
        steps = len(current) if timesteps is None and current.dim() else timesteps
        if current.dim() < 2 or not steps or len(current) not in (1, steps):
            raise UserError(
                f"current of shape {tuple(current.shape)} must be [T, N, ...] with T >= 1 (or [1, N, ...] "
                "with timesteps=T)"
            )
        if self.setting("relu"):
            return self._without_time(current, steps, norm, pool)
        surrogate: Surrogate = self.setting("surrogate") or self.spec.surrogate
        noise: Noise | None = self.setting("noise")
        source: NoiseStream | None = self.setting("source") if noise else None
        if noise is None and self.noise and (self.training or self.noise.at_eval):
            noise = self.noise
        if noise is not None and noise.sigma == 0:
            noise = None
        mode = Mode(
            steps,
            surrogate,
            self.spec.reset,
            self.spec.detach_reset if (asked := self.setting("detach_reset")) is None else asked,
            self.spec.v_init,
            noise.site if noise else "compare",
            bool(self.setting("smooth")),
            self.setting("band"),
            noise.reach if noise and noise.site == "band" else math.inf,
        )
        draw = (
            None if noise is None else _draw(current, steps, noise, source.next() if source else self.key())
        )
        observe = surrogate.observe if type(surrogate).observe is not Surrogate.observe else None
        rule: SequenceRule | None = self.setting("backward")
        want_u = self.setting("on_potentials") is not None
        changed = len(self.dynamics) > 0
        if changed or self.setting("on_current") is not None:
            if norm is not None:
                current = norms.normed(norm, current.flatten(0, 1), self.recomputing).unflatten(
                    0, current.shape[:2]
                )
                norm = None
            if (rates := self.dynamics.activation(current)) is not None:
                return _pooled(rates) if pool else rates
        own: Own = (self.decay, None)
        after = False
        if changed:
            current, decay = self.dynamics.charge(current, steps)
            own = (self.decay if decay is None else decay, self.dynamics.homeostasis())
            after, pool = pool and self.dynamics.gated, pool and not self.dynamics.gated
        for request in self.requests:
            if request.on_current:
                request.on_current(current)
        if rule is None:
            fired = self._run(current, mode, draw, observe, want_u, norm, pool, own)
        else:
            fired = self._rewired(rule, current, mode, draw, norm, pool, own)
        for request in self.requests:
            if request.on_potentials and fired.u is not None:
                request.on_potentials(fired.u)
            if request.on_penalty and fired.penalty is not None:
                request.on_penalty(fired.penalty)
        spikes = self.dynamics.gate(fired.spikes)
        return _pooled(spikes) if after else spikes

    def _run(
        self,
        current: Tensor,
        mode: Mode,
        draw: NoiseKeys | None,
        observe: cpp.Sharpness,
        want_u: bool,
        norm: nn.BatchNorm2d | None,
        pool: bool,
        own: Own,
    ) -> LayerOutput:
        decay, moving = own
        known = (norm is None or norms.is_fusable(norm)) and not (
            moving and moving.goal.requires_grad
        )  # the C++ pass derives by no goal
        if known and cpp.can(current, mode, current.numel()):
            asked = norms.norm_state(norm, self.recomputing) if norm is not None else None
            inside = pool and cpp.can_pool(current)
            fired = cpp.integrate(
                current, decay, self.threshold, cpp.Call(mode, asked, draw, observe, want_u, inside, moving)
            )
            return fired._replace(spikes=_pooled(fired.spikes)) if pool and not inside else fired
        if norm is not None:
            current = norms.normed(norm, current.flatten(0, 1), self.recomputing).unflatten(
                0, current.shape[:2]
            )
        noise = None if draw is None else _drawn(current, mode.timesteps, draw)
        if moving is None:
            fired = compiled.integrate(current, decay, self.threshold, mode, noise, observe, want_u)
        else:
            fired = self._moved(decay, moving, current, mode, noise, observe, want_u)
        return fired._replace(spikes=_pooled(fired.spikes)) if pool else fired

    def _moved(
        self,
        decay: Tensor,
        moving: Homeostasis,
        current: Tensor,
        mode: Mode,
        noise: Tensor | None,
        observe: cpp.Sharpness,
        want_u: bool,
    ) -> LayerOutput:
        """With thresholds that move, where there is no C++ (the readable loop, slower)."""
        sharpness = None
        if callable(observe):
            with torch.no_grad():
                u = equation.integrate(current, decay, self.threshold, mode, noise, moving=moving).u
            assert u is not None
            sharpness = observe(u)
        return equation.integrate(current, decay, self.threshold, mode, noise, sharpness, want_u, moving)

    def _rewired(
        self,
        rule: SequenceRule,
        current: Tensor,
        mode: Mode,
        draw: NoiseKeys | None,
        norm: nn.BatchNorm2d | None,
        pool: bool,
        own: Own,
    ) -> LayerOutput:
        """The same spikes as ever, a backward pass of ``rule``.

        Potentials and penalty carry no gradient then.
        """
        with torch.no_grad():
            fired = self._run(current, mode, draw, None, True, norm, False, own)
        assert fired.u is not None
        if norm is not None:  # its running averages have moved in the pass above
            current = norms.normed(norm, current.flatten(0, 1), True).unflatten(0, current.shape[:2])
        current = current.expand(mode.timesteps, *current.shape[1:])
        spikes = custom_backward(
            current, fired.spikes, fired.u, float(own[0].detach().mean()), float(self.threshold), rule
        )
        return fired._replace(spikes=_pooled(spikes) if pool else spikes)

    def _without_time(self, current: Tensor, steps: int, norm: nn.BatchNorm2d | None, pool: bool) -> Tensor:
        if norm is not None:
            current = norms.normed(norm, current.flatten(0, 1), True).unflatten(0, current.shape[:2])
        rate = (torch.relu(current) / self.threshold.to(current.dtype)).expand(steps, *current.shape[1:])
        return _pooled(rate) if pool else rate

    def setting(self, name: str) -> Any:
        return next((v for s in reversed(self.requests) if (v := getattr(s, name)) is not None), None)


def _pooled(spikes: Tensor) -> Tensor:
    pooled: Tensor = F.avg_pool2d(spikes.flatten(0, 1), 2).unflatten(0, spikes.shape[:2])
    return pooled


def _draw(current: Tensor, steps: int, noise: Noise, seed: int) -> NoiseKeys:
    """Keys of this call's noise; a sample's noise does not depend on the batch size."""
    return NoiseKeys(
        noise.sigma, draws.step_keys(seed, torch.arange(current.shape[1], device=current.device), steps)
    )


def _drawn(current: Tensor, steps: int, draw: NoiseKeys) -> Tensor:
    """The noise itself ``[T, N, ...]``, laid out in memory like the current."""
    layout = Layout.of(current)
    values = draws.normal(draw.keys, math.prod(layout.sizes[1:]), steps).mul_(draw.sigma)
    return layout.full(
        values.to(torch.float64 if current.dtype == torch.float64 else torch.float32).reshape(steps, -1)
    )


class LIF(Spiking):
    """Leaky integrate-and-fire layer; the arguments of ``Neuron``, and ``noise``."""

    kind: Literal["lif", "if", "plif"] = "lif"

    def __init__(
        self,
        decay: float = 1.0,
        threshold: float = 1.0,
        learn_threshold: bool = False,
        reset: Literal["hard", "soft"] = "hard",
        detach_reset: bool = False,
        v_init: float = 0.0,
        surrogate: Surrogate | None = None,
        noise: Noise | None = None,
    ) -> None:
        spec = Neuron(
            self.kind, decay, threshold, learn_threshold, reset, detach_reset, v_init, surrogate or Triangle()
        )
        super().__init__(spec, noise)


class IF(LIF):
    """Integrate-and-fire layer: no leak."""

    kind = "if"


class PLIF(LIF):
    """Leaky layer whose decay is learned (``sigmoid`` of a parameter); ``decay`` is its start.

    Fang et al., ICCV 2021.
    """

    kind = "plif"

    def __init__(self, decay: float = 0.5, **settings: object) -> None:
        super().__init__(decay, **settings)  # type: ignore[arg-type]
