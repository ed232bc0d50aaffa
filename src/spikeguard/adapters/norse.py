"""Neurons of norse 1.1.0 (https://github.com/norse/norse).

A module's ``activation`` calls ``threshold(v - v_th, method, alpha)``, a global of its file. The module gets
the same function with another global, so that no other module is touched. State is an argument: None is
reset. Fires at >.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from types import FunctionType

import torch
from torch import Tensor, nn

from spikeguard.adapters.base import Charge, Layer, Raw
from spikeguard.adapters.origin import from_package
from spikeguard.neurons.request import TapRequest

PACKAGE = "norse"
NEURONS = "norse.torch.module"
BASES = ("SNN", "SNNCell", "SNNRecurrent", "SNNRecurrentCell")
"""What every layer with a state derives from one of."""
SEQUENCES = {"SNN", "SNNRecurrent"}
REFRACTORY = "compute_refractory_update"  # its threshold is that of the pause, not of the potential
ADJOINT = "method 'adjoint' computes its steps inside an autograd function; choose another method"
DETACH = "its step fixes whether the reset is detached"
TWICE = "it compares twice a step: its pause, and its potential"
NO_INPUT = "in norse 1.1.0 its step overwrites what the input adds: its spikes do not depend on the input"
NO_BATCH = "in norse 1.1.0 it fails on most batch sizes: its sensor cannot add a batch to its synapses"
REFUSED = {"LIFMCRefracRecurrentCell": TWICE, "CobaLIFCell": NO_INPUT, "LIFCorrelation": NO_BATCH}
DIRECT = {"LIFMCRecurrentCell"}
"""They have no ``activation``: their ``forward`` calls the step itself."""


class NorseLayer(Layer):
    """A module that computes its steps by ``activation``."""

    framework = "norse"

    @property
    def threshold(self) -> Tensor | float:
        p: Raw = self.module.p
        p = getattr(p, "lif", None) or p
        value: Tensor | float = p.v_th
        return value

    @property
    def whole(self) -> bool:
        return bool(self.names & SEQUENCES)

    @property
    def sums(self) -> bool:
        return type(self.module).__name__ in ("LIF", "IAF")

    def fresh(self, *args: Raw, **kwargs: Raw) -> bool:
        state = kwargs["state"] if "state" in kwargs else args[-1]
        return state is None or state is args[0]

    def charge(self, *args: Raw, **kwargs: Raw) -> Charge | None:
        if not self.sums:
            return None
        x: Tensor = args[0] if args else kwargs["input_tensor"]
        state: Raw = args[1] if len(args) > 1 else kwargs.get("state")
        p: Raw = self.module.p
        if type(self.module).__name__ == "IAF":
            return Charge(x, 1.0, float(p.v_th))
        dt = float(self.module.dt)  # type: ignore[arg-type]
        membrane, synapse = dt * float(p.tau_mem_inv), dt * float(p.tau_syn_inv)
        i, currents = torch.zeros_like(x[0]) if state is None else state.i, []
        for step in x:
            i = i + step
            currents.append(membrane * (i + p.v_leak))
            i = (1.0 - synapse) * i
        return Charge(torch.stack(currents), 1.0 - membrane, float(p.v_th))

    def step(self) -> FunctionType:
        """The function that compares, or that calls what does."""
        found: FunctionType = (
            vars(type(self.module))["forward"] if self.names & DIRECT else self.own("activation")
        )
        return found

    def seams(self) -> Mapping[str, Raw]:
        return {} if self.names & DIRECT else {"activation": Activation(self)}

    def body(self) -> Raw:
        if self.names & DIRECT:
            return partial(Activation(self), self.module)
        return super().body()

    def compare(self, u: Tensor, method: str, alpha: Raw) -> Tensor:
        own = global_of(self.step(), "threshold")
        return self.fire(u, lambda w: own(w, method, alpha))

    def refuses(self, request: TapRequest) -> str:
        if self.refused:
            return self.refused
        p: Raw = self.module.p
        if getattr(p, "method", "") == "adjoint":
            return ADJOINT
        return DETACH if request.detach_reset is not None else super().refuses(request)


class Activation:
    """Stands in place of a module's step; a copy of the module gets one of its own."""

    def __init__(self, layer: NorseLayer) -> None:
        self.layer, self.step = layer, rebound(layer.step(), layer.compare)

    def __call__(self, *args: Raw, **kwargs: Raw) -> Raw:
        return self.step(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Raw]) -> Activation:
        return Activation(copy.deepcopy(self.layer, memo))


def rebound(function: FunctionType, threshold: Raw) -> FunctionType:
    """The same function, whose ``threshold``, here and in what it calls, is another."""
    changed: dict[str, Raw] = {}
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if name == "threshold":
            changed[name] = threshold
        elif isinstance(value, FunctionType) and is_step(name, value) and reaches(value):
            changed[name] = rebound(value, threshold)
    made = FunctionType(
        function.__code__,
        {**function.__globals__, **changed},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def is_step(name: str, function: FunctionType) -> bool:
    """Could this function of norse compare a potential with its threshold?"""
    return function.__module__.startswith("norse.") and name != REFRACTORY


def reaches(function: FunctionType) -> bool:
    """Does the function, or what it calls, compare with ``threshold``?"""
    return global_of(function, "threshold") is not None


def global_of(function: FunctionType, wanted: str) -> Raw:
    """That global of a norse function or of what it calls."""
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if name == wanted:
            return value
        if isinstance(value, FunctionType) and is_step(name, value):
            found = global_of(value, wanted)
            if found is not None:
                return found
    return None


def layer(module: nn.Module) -> Layer | None:
    """The module as a layer, or None."""
    if not from_package(module, NEURONS):
        return None
    names = {c.__name__ for c in type(module).__mro__}
    if refused := next((reason for name, reason in REFUSED.items() if name in names), ""):
        return NorseLayer(module, refused)
    step: Raw = getattr(module, "activation", None)
    fires = isinstance(step, FunctionType) and reaches(step)  # leaky integrators do not
    adjoint = getattr(getattr(module, "p", None), "method", "") == "adjoint"
    return NorseLayer(module) if names & DIRECT or fires or adjoint else None


def reset(module: nn.Module) -> None:
    """Nothing to do: state is passed by the caller."""
