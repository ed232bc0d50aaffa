"""What open taps request of a layer of neurons."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from spikeguard.kernels.custom_backward import SequenceRule
from spikeguard.kernels.mode import Band
from spikeguard.neurons.settings import Noise
from spikeguard.random.streams import NoiseStream
from spikeguard.surrogates import Surrogate


class Record(Protocol):
    """Receives what a layer computes: a whole sequence ``[T, N, ...]``, or with ``run`` one step of it."""

    def __call__(self, value: Tensor, run: object = None, /) -> None: ...


@dataclass
class TapRequest:
    """What an open tap requests of one layer; None leaves the layer as it is.

    ``on_current``, ``on_potentials``, ``on_spikes`` and ``on_penalty`` are called with what the layer
    computes; ``push`` gives what is added to ``u`` where it is compared, ``[T, N, ...]``: infinite, it holds
    a spike. ``carry`` is called with penalty and spikes, and returns the spikes. The request is about calls
    of the thread ``thread`` (None: of every thread) at which ``when`` is true (None: about every call).

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
    on_current: Record | None = None
    on_potentials: Record | None = None
    on_spikes: Record | None = None
    on_penalty: Record | None = None
    push: Callable[[], Tensor] | None = None
    carry: Callable[[Tensor, Tensor], Tensor] | None = None
    when: Callable[[], bool] | None = None
    thread: int | None = None


_NAMES = tuple(f.name for f in fields(TapRequest) if f.name != "thread")
_NONE = TapRequest()


def recomputing() -> bool:
    """Is a backward pass at work in this thread? What runs there computes a forward pass again."""
    return torch._C._current_autograd_node() is not None


def active(requests: Sequence[TapRequest]) -> Sequence[TapRequest]:
    """The requests that are about this call; a backward pass may run in a thread of its own."""
    requests = [request for request in requests if request.when is None or request.when()]
    if not requests:
        return requests
    here = threading.get_ident()
    mine = [request for request in requests if request.thread in (None, here)]
    return list(requests) if len(mine) < len(requests) and recomputing() else mine


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


def _call_each(functions: Sequence[Callable[..., None]], *values: object) -> None:
    for function in functions:
        function(*values)
