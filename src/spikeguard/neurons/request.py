"""What open taps request of a layer of neurons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch import Tensor, nn

from spikeguard.kernels.custom_backward import SequenceRule
from spikeguard.kernels.mode import Band
from spikeguard.neurons.settings import Noise
from spikeguard.random.streams import NoiseStream
from spikeguard.surrogates import Surrogate


@dataclass
class TapRequest:
    """What an open tap requests of one layer; None leaves the layer as it is.

    ``on_current``, ``on_potentials`` and ``on_penalty`` are called with what the layer computes. ``carry`` is
    called with the layer, its penalty and its spikes, and returns the spikes. ``when``: the request holds
    only where this is true of the layer.

    >>> request = sg.neurons.TapRequest(detach_reset=True)
    >>> request.detach_reset, request.surrogate
    (True, None)
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
    carry: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None
    when: Callable[[nn.Module], bool] | None = None


_NAMES = tuple(f.name for f in fields(TapRequest))
_NONE = TapRequest()


def merge(requests: Sequence[TapRequest]) -> TapRequest:
    """One request for several open taps: the last one decides each setting, and every one is notified."""
    if not requests:
        return _NONE
    if len(requests) == 1:
        return requests[0]
    merged: dict[str, Any] = {}
    for name in _NAMES:
        given = [value for request in requests if (value := getattr(request, name)) is not None]
        if given:
            merged[name] = partial(_call_each, given) if name.startswith("on_") else given[-1]
    return TapRequest(**merged)


def _call_each(functions: Sequence[Callable[[Tensor], None]], value: Tensor) -> None:
    for function in functions:
        function(value)
