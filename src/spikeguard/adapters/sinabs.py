"""Layers of sinabs 3.1.3 (https://github.com/synsense/sinabs).

A layer computes ``[N, T, ...]`` and calls ``spike_fn.apply(v_mem, spike_threshold, surrogate)`` once a step.
Fires at >=; the default ``MultiSpike`` sends several spikes a step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spikeguard.adapters.base import Charge, Layer, Raw
from spikeguard.adapters.origin import derives_from
from spikeguard.neurons.request import TapRequest, active, merge

PACKAGE = "sinabs"
BASES = ("StatefulLayer",)
"""What every layer with a state derives from."""
SMOOTH = "a soft step has no counterpart of several spikes a step; use spike_fn=SingleSpike"
SUMS = {"LIF", "IAF", "LIFSqueeze", "IAFSqueeze"}


class SinabsLayer(Layer):
    """A layer with a ``spike_fn``."""

    framework = "sinabs"

    @property
    def threshold(self) -> Tensor | float:
        module: Raw = self.module
        value: Tensor | float = module.b0 if hasattr(module, "b0") else module.spike_threshold
        return value

    @property
    def whole(self) -> bool:
        return True

    @property
    def sums(self) -> bool:
        return type(self.module).__name__ in SUMS

    def reset(self) -> None:
        """Zero the layer's states."""
        reset(self.module)

    def fresh(self, *args: Raw, **kwargs: Raw) -> bool:
        return True

    def charge(self, *args: Raw, **kwargs: Raw) -> Charge | None:
        if not self.sums:
            return None
        module: Raw = self.module
        x = self.time_first(args[0] if args else kwargs["input_data"])
        decay, synapse = module.alpha_mem_calculated.detach(), module.alpha_syn_calculated
        if synapse is not None:
            fits = module.i_syn.shape == x[0].shape
            i, currents = module.i_syn if fits else torch.zeros_like(x[0]), []
            for step in x:
                i = synapse.detach() * (i + step)
                currents.append(i)
            x = torch.stack(currents)
        if module.norm_input:
            x = (1 - decay) * x
        return Charge(x, float(decay.mean()), float(module.spike_threshold.detach().mean()))

    def time_first(self, spikes: Tensor) -> Tensor:
        module: Raw = self.module
        if hasattr(module, "squeeze_forward"):
            spikes = spikes.reshape(module.batch_size, module.num_timesteps, *spikes.shape[1:])
        return spikes.transpose(0, 1)

    def as_output(self, spikes: Tensor) -> Tensor:
        spikes = spikes.transpose(0, 1)
        return spikes.flatten(0, 1) if hasattr(self.module, "squeeze_forward") else spikes

    def seams(self) -> Mapping[str, Raw]:
        return {"spike_fn": SpikeFunction(self), "reset_fn": self._reset}

    def _reset(self, spikes: Tensor, state: Raw, threshold: Raw) -> Raw:
        detach = merge(active(self.requests)).detach_reset
        return self.own("reset_fn")(spikes.detach() if detach else spikes, state, threshold)

    def refuses(self, request: TapRequest) -> str:
        if request.smooth and getattr(self.own("spike_fn"), "__name__", "") != "SingleSpike":
            return SMOOTH
        return super().refuses(request)


class SpikeFunction:
    """Stands in place of a layer's ``spike_fn``."""

    def __init__(self, layer: SinabsLayer) -> None:
        self.layer = layer

    @property
    def required_states(self) -> Raw:
        """The states that ``apply`` gets."""
        return self.layer.own("spike_fn").required_states

    def apply(self, v_mem: Tensor, *rest: Raw) -> Tensor:
        """Spikes of a membrane ``[N, ...]``; ``rest``: further states, the threshold, the surrogate."""
        *others, threshold, surrogate = rest
        own: Raw = self.layer.own("spike_fn")
        return self.layer.fire(
            v_mem - threshold, lambda v: own.apply(v, *others, threshold, surrogate), v_mem
        )


def layer(module: nn.Module) -> Layer | None:
    """The module as a layer, or None."""
    spikes = getattr(module, "spike_fn", None) is not None
    return SinabsLayer(module) if derives_from(module, PACKAGE, BASES) and spikes else None


def reset(module: nn.Module) -> None:
    """New zeros for the layer's own states; those of modules inside of it are theirs."""
    if derives_from(module, PACKAGE, BASES):
        for name, state in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros_like(state))
