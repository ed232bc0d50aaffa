"""Neurons of snnTorch 1.0.0 (https://github.com/jeshraghian/snntorch).

``spike_grad`` gets ``mem - threshold`` twice a step: in ``fire`` and, a step later, in ``mem_reset``. Both
stand under one tap, so that noise is drawn once for spike and reset. Fires at >. ``mem`` before the reset is
the potential that fired.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spikeguard.adapters.base import Charge, Layer, Raw, Step
from spikeguard.adapters.origin import from_package
from spikeguard.neurons.request import TapRequest, active, merge

PACKAGE = "snntorch"
NEURONS = "snntorch._neurons"
BASES = ("SpikingNeuron",)
"""What every layer with a state derives from."""
STATES = ("mem", "syn", "syn_exc", "syn_inh", "spk", "mem_prev")
SEQUENCES = {"StateLeaky", "LinearLeaky", "AssociativeLeaky", "LeakyParallel", "LeakyKernel"}
SUMS = {"StateLeaky", "LinearLeaky"}
DETACH = "it has no reset that could be detached"
INHIBITION = "with inhibition=True only one neuron of a sample fires, whatever its own distance"
NO_SPIKES = "with output=False it sends its membrane and never fires"


class SnnTorchLayer(Layer):
    """A neuron whose ``spike_grad`` turns the distance to the threshold into spikes."""

    framework = "snnTorch"

    @property
    def threshold(self) -> Tensor | float:
        module: Raw = self.module
        value: Tensor = module.delta_threshold if "DeltaLeaky" in self.names else module.threshold
        return value

    @property
    def whole(self) -> bool:
        return bool(self.names & SEQUENCES)

    @property
    def at_once(self) -> bool:  # type: ignore[override]
        return self.whole

    @property
    def sums(self) -> bool:
        return bool(self.names & SUMS)

    def reset(self) -> None:
        """Zero the states of this neuron."""
        reset(self.module)

    def charge(self, *args: Raw, **kwargs: Raw) -> Charge | None:
        module: Raw = self.module
        x: Tensor = args[0] if args else kwargs["input_"]
        if not self.sums:
            return None
        current = module.linear(x) if "LinearLeaky" in self.names else x
        decay = torch.exp(-1.0 / module.tau.detach())
        return Charge(current, float(decay.mean()), float(module.threshold.detach()))

    def fresh(self, *args: Raw, **kwargs: Raw) -> bool:
        given = [*args[1:], *kwargs.values()]
        state = next((t for t in reversed(given) if isinstance(t, Tensor)), getattr(self.module, "mem", None))
        last: tuple[Tensor, int] | None = vars(self._state).get("last")
        if last is None or state is None:
            return True
        same = state.data_ptr() == last[0].data_ptr() and state.shape == last[0].shape
        return not (same and state._version == last[1])

    def after(self) -> None:
        mem: Tensor | None = getattr(self.module, "mem", None)
        self._state.last = None if mem is None else (mem.detach(), mem._version)

    def seams(self) -> Mapping[str, Raw]:
        second = {"mem_reset": self._mem_reset} if hasattr(self.module, "mem_reset") else {}
        return {"spike_grad": self._spike_grad, **second}

    def _spike_grad(self, u: Tensor) -> Tensor:
        own: Step = self.own("spike_grad")
        return self.again(u, own) if vars(self._state).get("resets") else self.fire(u, own)

    def _mem_reset(self, mem: Tensor) -> Tensor:
        """Which neurons are reset, by the comparison with which they fired."""
        module: Raw = self.module
        self._state.resets = True
        try:
            if merge(active(self.requests)).detach_reset is False:  # its own way detaches
                return self.again(mem - module.threshold, self.own("spike_grad"))
            reset: Tensor = self.own("mem_reset")(mem)
            return reset
        finally:
            self._state.resets = False

    def refuses(self, request: TapRequest) -> str:
        if getattr(self.module, "inhibition", False):
            return INHIBITION
        if self.whole and not getattr(self.module, "output", True):
            return NO_SPIKES
        if request.detach_reset is not None and (self.whole or "DeltaLeaky" in self.names):
            return DETACH
        return super().refuses(request)


def layer(module: nn.Module) -> Layer | None:
    """The neuron as a layer, or None."""
    found = from_package(module, NEURONS) and hasattr(module, "spike_grad")
    return SnnTorchLayer(module) if found else None


def reset(module: nn.Module) -> None:
    """Zero the neuron's states: new tensors, so that no graph is cut and none is kept."""
    own: Raw = module
    if from_package(module, NEURONS) and hasattr(module, "reset_mem"):
        own.reset_mem()
