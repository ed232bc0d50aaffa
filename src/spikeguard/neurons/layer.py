"""A layer of spiking neurons, and LIF, IF and PLIF by name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable, without importing the compiler

from spikeguard.errors import UserError
from spikeguard.kernels import dispatch, norms, operator
from spikeguard.kernels.dispatch import Cell
from spikeguard.kernels.mode import Mode, NoiseKeys
from spikeguard.neurons.modifiers import Chain
from spikeguard.neurons.request import TapRequest, active, merge
from spikeguard.neurons.settings import Neuron, Noise
from spikeguard.random import draws
from spikeguard.random.streams import NoiseStream, StochasticModule
from spikeguard.surrogates import Surrogate, Triangle


class Spiking(StochasticModule):
    """A layer of neurons: ``current [T, N, ...] -> spikes [T, N, ...]``; the potential starts at ``v_init``
    at each call.

    A current ``[1, N, ...]`` with ``timesteps=T`` is constant over time. Spikes have the dtype of the
    current; potentials are computed in float32 (float64 for float64). Noise, if set, is drawn in training,
    and in evaluation if ``noise.at_eval``. ``norm`` is applied to the current first, ``pool`` averages 2x2
    pixels of the spikes; both need a current ``[T, N, C, H, W]`` and cost no pass over memory of their own.

    >>> layer = sg.LIF(decay=0.5)
    >>> isinstance(layer, sg.neurons.Spiking), layer(torch.full((3, 1, 1), 0.8)).flatten().tolist()
    (True, [0.0, 1.0, 0.0])
    """

    def __init__(
        self, spec: Neuron, noise: Noise | None = None, norm: nn.BatchNorm2d | None = None, pool: bool = False
    ) -> None:
        super().__init__()
        self.spec = spec
        self.noise = noise
        self.pool = pool
        self._norm_owner: tuple[nn.Module, str] | None = None
        if norm is not None:
            self._modules["norm"] = norm  # what ``self.norm = norm`` does
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
            self.decay_logit = nn.Parameter(
                torch.tensor(math.log(spec.decay / (1 - spec.decay)), dtype=torch.float32)
            )
        else:
            self.register_buffer(
                "fixed_decay", torch.tensor(float(spec.decay), dtype=torch.float64), persistent=False
            )

    @property
    def spec(self) -> Neuron:
        """Settings of the neurons."""
        return self._spec

    @spec.setter
    def spec(self, spec: Neuron) -> None:
        self._spec, self._surrogate = spec, operator.key(spec.surrogate)
        self._observes = type(spec.surrogate).observe is not Surrogate.observe

    @property
    def decay(self) -> Tensor:
        """Decay of the potential from step to step, a scalar tensor."""
        return torch.sigmoid(self.decay_logit) if self.spec.kind == "plif" else self.fixed_decay  # type: ignore[return-value]

    @property
    def norm(self) -> nn.BatchNorm2d | None:
        """The batch norm before the neurons: the layer's own, or the one that a network lends it."""
        own = self._modules.get("norm")
        return own if own or self._norm_owner is None else getattr(*self._norm_owner)  # type: ignore[return-value]

    def after(self, owner: nn.Module, name: str = "norm") -> Self:
        """Use the batch norm that ``owner`` registers as ``name``, so that its keys in checkpoints stay."""
        self._norm_owner = (owner, name)
        return self

    def extra_repr(self) -> str:
        return f"{self.spec}, noise={self.noise}"

    def forward(self, current: Tensor, timesteps: int | None = None) -> Tensor:
        """Spikes ``[T, N, ...]`` of a current ``[T, N, ...]``.

        Raises UserError on T = 0 or a missing batch dimension.
        """
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            return (
                self._in_graph(current, timesteps) if self.is_plain() else self._outside(current, timesteps)
            )
        return self._integrated(current, timesteps)

    def is_plain(self) -> bool:
        """Does nothing but the settings of the neurons decide what this call computes?"""
        return not self._extra()

    def _extra(self) -> str:
        """What else decides what this call computes, and what to do about it, or ""."""
        if self.noise is not None and self.noise.sigma > 0 and (self.training or self.noise.at_eval):
            return "draws noise: call model.eval(), and leave out noise at_eval"
        if len(self.requests) > 0:
            return "has an open tap or guard: close it"
        if len(self.dynamics) > 0 or self.recomputing:
            return "has neurons changed by a defense or an attack"
        return "has a surrogate that adapts to its potentials: choose another one" if self._observes else ""

    def _in_graph(self, current: Tensor, timesteps: int | None) -> Tensor:
        """One operator in a graph that torch compiles or exports."""
        steps, spec = _steps(current, timesteps), self._spec
        if self.norm is not None:
            current = norms.normalize(self.norm, current, False)
        scalars = (steps, spec.reset == "hard", spec.detach_reset, float(spec.v_init), self._surrogate)
        spikes = operator.spikes(current, self.decay, self.threshold, scalars)
        return dispatch.pooled(spikes) if self.pool else spikes

    def _outside(self, current: Tensor, timesteps: int | None) -> Tensor:
        """Between two graphs, as it is: a tap or noise is open. UserError if there must be one graph."""
        if torch.compiler.is_exporting() or torch._C._is_tracing():
            raise UserError(f"export: a layer of neurons {self._extra()}")
        return self._between(current, timesteps)

    @_disable_dynamo
    def _between(self, current: Tensor, timesteps: int | None) -> Tensor:
        return self._integrated(current, timesteps)

    def _integrated(self, current: Tensor, timesteps: int | None) -> Tensor:
        steps = _steps(current, timesteps)
        request = self.request()
        settings = self._settings(current, steps, request)
        if request.relu:
            return dispatch.relu_rates(current, self.threshold, steps, settings)
        if len(self.dynamics) > 0 or request.on_current is not None:  # they see the current after its norm
            current, settings = dispatch.normalize_first(current, settings)
            if (rates := self.dynamics.activation(current)) is not None:
                return dispatch.pooled(rates) if self.pool else rates
        current, decay = self.dynamics.charge(current, steps)
        cell = Cell(self.decay if decay is None else decay, self.threshold, self.dynamics.homeostasis())
        if request.on_current is not None:
            request.on_current(current)
        apart = self.dynamics.gated or request.on_spikes is not None  # pooling comes after these
        out = dispatch.integrate(current, cell, replace(settings, pool=False) if apart else settings)
        if request.on_potentials is not None and out.u is not None:
            request.on_potentials(out.u)
        if request.on_penalty is not None and out.penalty is not None:
            request.on_penalty(out.penalty)
        spikes = out.spikes
        if request.on_spikes is not None:
            request.on_spikes(spikes)
        if request.carry is not None and out.penalty is not None:
            spikes = request.carry(out.penalty, spikes)
        spikes = self.dynamics.gate(spikes)
        return dispatch.pooled(spikes) if apart and self.pool else spikes

    def request(self) -> TapRequest:
        """What the open taps request of this layer, in one."""
        return merge(active(self.requests))

    def __getstate__(self) -> dict[str, object]:
        """What a copy holds: no open tap, which would read it as if it were this layer."""
        return {**self.__dict__, "requests": []}

    def _settings(self, current: Tensor, timesteps: int, request: TapRequest) -> dispatch.Settings:
        """What this call computes: the layer's own settings, changed by what the taps request."""
        surrogate = request.surrogate or self.spec.surrogate
        detach = self.spec.detach_reset if request.detach_reset is None else request.detach_reset
        noise, source = self._noise(request)
        mode = Mode(
            timesteps,
            surrogate,
            self.spec.reset,
            detach,
            self.spec.v_init,
            noise.site if noise else "compare",
            bool(request.smooth),
            request.band,
            noise.noise_band if noise and noise.site == "band" else math.inf,
        )
        return dispatch.Settings(
            mode,
            None if noise is None or request.relu else self._keys(current, timesteps, noise, source),
            surrogate.observe if type(surrogate).observe is not Surrogate.observe else None,
            request.on_potentials is not None,
            request.backward,
            self.norm,
            self.recomputing,
            self.pool,
            None if request.push is None else request.push().reshape(timesteps, *current.shape[1:]),
        )

    def _noise(self, request: TapRequest) -> tuple[Noise | None, NoiseStream | None]:
        """The noise of this call, if any, and its stream; None is the layer's own stream."""
        noise, source = request.noise, request.source if request.noise else None
        if noise is None and self.noise and (self.training or self.noise.at_eval):
            noise = self.noise
        return (None if noise is None or noise.sigma == 0 else noise), source

    def _keys(self, current: Tensor, timesteps: int, noise: Noise, source: NoiseStream | None) -> NoiseKeys:
        """Keys of this call's noise; a sample's noise does not depend on the batch size."""
        samples = torch.arange(current.shape[1], device=current.device)
        seed = self.key() if source is None else source.next()
        return NoiseKeys(noise.sigma, draws.step_keys(seed, samples, timesteps))


def _steps(current: Tensor, timesteps: int | None) -> int:
    """The number of time steps; UserError if the current does not fit."""
    steps = len(current) if timesteps is None and current.dim() else timesteps
    if current.dim() < 2 or not steps or len(current) not in (1, steps):
        raise UserError(
            f"current of shape {tuple(current.shape)} must be [T, N, ...] with T >= 1 (or [1, N, ...] "
            "with timesteps=T)"
        )
    return steps


class LIF(Spiking):
    """Leaky integrate-and-fire layer, ``current [T, N, ...] -> spikes [T, N, ...]``.

    The arguments are those of ``Neuron``, and ``noise``. The default ``decay`` of 1.0 does not leak:
    ``LIF()`` is ``IF()`` until a decay below 1 is given. It is the share of the potential that a step keeps;
    other frameworks write it as 1 - 1/tau (spikingjelly's tau = 2 is 0.5) or as beta (snnTorch). Raises
    UserError on a value that is not allowed.

    >>> current = torch.tensor([0.6, 0.6, 0.6, 0.6]).view(4, 1, 1)
    >>> sg.LIF()(current).flatten(), sg.LIF(decay=0.5)(current).flatten()
    (tensor([0., 1., 0., 1.]), tensor([0., 0., 1., 0.]))
    """

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
    """Integrate-and-fire layer, ``current [T, N, ...] -> spikes [T, N, ...]``: no leak.

    >>> sg.IF(threshold=1.5)(torch.ones(4, 1, 1)).flatten()
    tensor([0., 1., 0., 1.])
    """

    kind = "if"


class PLIF(LIF):
    """Leaky layer that learns its decay, the ``sigmoid`` of a parameter; ``decay`` in (0, 1) is its start.

    Fang et al., "Incorporating learnable membrane time constant", ICCV 2021.

    >>> layer = sg.PLIF(decay=0.5)
    >>> layer(torch.ones(4, 1, 1)).sum().backward()
    >>> layer.decay_logit.grad is not None
    True
    """

    kind = "plif"

    def __init__(self, decay: float = 0.5, **settings: object) -> None:
        super().__init__(decay, **settings)  # type: ignore[arg-type]
