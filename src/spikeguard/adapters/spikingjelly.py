"""Neurons of SpikingJelly 2.0.0 and 0.0.0.0.14 (https://github.com/fangwei123456/spikingjelly).

They call ``surrogate_function(H - v_threshold)`` once a step. A callable of ours stands in its place as an
attribute of the instance, so that the module's own, with its parameters, stays registered. Fires at >=.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from spikeguard.adapters.base import Charge, Layer, Raw, Step
from spikeguard.adapters.origin import derives_from, from_package
from spikeguard.neurons.request import TapRequest

PACKAGE = "spikingjelly"
NEURONS = "spikingjelly.activation_based.neuron"
GATES = "spikingjelly.activation_based.rnn"
GATED = "its gates fire by themselves, without a potential that sums over time"
BASES = ("MemoryModule",)
"""What every layer with a state derives from; clock_driven has one of its own."""
REFUSED = {
    "ILIFNode": "it sends integer counts of H / v_threshold, not spikes at one threshold",
    "TernaryIFNode": "it has two thresholds, one for positive and one for negative spikes",
    "TernaryLIFNode": "it has two thresholds, one for positive and one for negative spikes",
    "DSRIFNode": "it computes its whole sequence inside one autograd function, without a surrogate",
    "DSRLIFNode": "it computes its whole sequence inside one autograd function, without a surrogate",
    "LIAFNode": "it sends analog values; its spikes only reset it",
    "STBIFNode": "it sends signed counts of a quantizer, without a surrogate",
    "FlexSN": "its equation is a function of the user's own, in which no threshold is known",
    "FewSpikeNode": "it encodes a sum in K steps whose thresholds differ",
    "OutlierAwareThresholdNode": "it encodes a sum in K steps whose thresholds differ",
    "HGNode": "it encodes a sum in K steps whose thresholds differ",
}
ONLINE = "in eval mode it fires by a fixed step that no tap reaches; put it into training mode"
DETACH = "its reset cannot be detached"
SUMS = {"IFNode", "LIFNode", "ParametricLIFNode", "SimpleIFNode", "SimpleLIFNode"}
PARALLEL = {"PSN", "MaskedPSN", "SlidingPSN"}


class SpikingJellyLayer(Layer):
    """A node that calls its ``surrogate_function`` once a step."""

    framework = "SpikingJelly"

    @property
    def threshold(self) -> Tensor | float:
        value: Tensor | float = getattr(self.module, "v_threshold", 0.0)
        return value.sigmoid() if isinstance(value, Tensor) and "GatedLIFNode" in self.names else value

    @property
    def whole(self) -> bool:
        modes: Raw = getattr(self.module, "supported_step_mode", None)
        return getattr(self.module, "step_mode", None) == "m" or (modes is not None and modes() == ("m",))

    def reset(self) -> None:
        """Reset the node's memories."""
        reset(self.module)

    @property
    def at_once(self) -> bool:  # type: ignore[override]
        return self.whole and bool(self.names & PARALLEL)

    @property
    def sums(self) -> bool:
        return type(self.module).__name__ in SUMS

    def charge(self, *args: Raw, **kwargs: Raw) -> Charge | None:
        module: Raw = self.module
        if not self.sums:
            return None
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        inverse = torch.tensor(0.0) if not hasattr(module, "tau") else torch.tensor(1.0 / module.tau)
        if hasattr(module, "w"):
            inverse = module.w.detach().sigmoid()
        scale = float(inverse) if getattr(module, "decay_input", False) else 1.0
        rest = float(inverse) * (module.v_reset or 0.0)
        current = x if scale == 1.0 and rest == 0.0 else x * scale + rest
        return Charge(current, 1.0 - float(inverse), float(module.v_threshold))

    def fresh(self, *args: Raw, **kwargs: Raw) -> bool:
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        state: Raw = next(iter(getattr(self.module, "_memories", {}).values()), None)
        if isinstance(state, list):
            return not state
        if isinstance(state, Tensor):
            return state.dim() > 0 and state.shape != x.shape
        return not state or type(self.module).__name__ != "MaskedPSN"

    def seams(self) -> Mapping[str, Raw]:
        return {"surrogate_function": Proxy(self)}

    @contextmanager
    def around(self, request: TapRequest) -> Iterator[None]:
        module: Raw = self.module
        changed: dict[str, Raw] = {}
        if request.detach_reset is not None:
            changed["detach_reset"] = request.detach_reset
        if hasattr(type(module), "backend"):  # 0.0.0.0.14: in eval mode its steps have no gradient
            changed |= {"training": True, "backend": "torch"}  # no norm and no dropout is inside of a node
        own = {name: getattr(module, name) for name in changed}
        for name, value in changed.items():
            setattr(module, name, value)
        try:
            yield
        finally:
            for name, value in own.items():
                setattr(module, name, value)

    def shaped(self, u: Tensor) -> Tensor:
        if not self.names & PARALLEL:
            return u
        shape: Raw = self._state.shape
        return u.view(shape)

    def refuses(self, request: TapRequest) -> str:
        if not self.refused and self.names & {"OTTTLIFNode", "SLTTLIFNode"} and not self.module.training:
            return ONLINE
        if not self.refused and request.detach_reset is not None and "detach_reset" not in vars(self.module):
            return DETACH
        return super().refuses(request)

    def _forward(self, *args: Raw, **kwargs: Raw) -> Raw:
        self._state.shape = (args[0] if args else next(iter(kwargs.values()))).shape
        return super()._forward(*args, **kwargs)


class Proxy:
    """Stands in place of a node's surrogate function."""

    spiking = False

    def __init__(self, layer: SpikingJellyLayer) -> None:
        self.layer = layer

    def __call__(self, u: Tensor) -> Tensor:
        own: Step = self.layer.own("surrogate_function")
        return self.layer.fire(u, own)


def layer(module: nn.Module) -> Layer | None:
    """The node as a layer, or None."""
    if from_package(module, GATES) and type(module).__name__.endswith("Cell"):
        return SpikingJellyLayer(module, GATED)
    if not from_package(module, NEURONS):
        return None
    names = [c.__name__ for c in type(module).__mro__]
    refused = next((REFUSED[name] for name in names if name in REFUSED), "")
    if not refused and not hasattr(module, "surrogate_function"):
        return None  # nodes that do not spike
    return SpikingJellyLayer(module, refused)


def reset(module: nn.Module) -> None:
    """What the module's own ``reset`` does, if it keeps a state."""
    own: Raw = module
    if derives_from(module, PACKAGE, BASES):
        own.reset()
