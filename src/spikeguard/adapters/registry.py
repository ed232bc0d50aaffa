"""All layers of neurons of a model, whatever framework they come from, and a reset of exactly this model."""

from __future__ import annotations

import threading
from typing import Protocol

from torch import nn

from spikeguard.adapters import custom, norse, own, sinabs, snntorch, spikingjelly
from spikeguard.adapters.base import Layer
from spikeguard.adapters.origin import derives_from
from spikeguard.neurons.request import TapRequest


class Adapter(Protocol):
    """What a framework's file gives: its layers, and how the state of its modules is reset."""

    def layer(self, module: nn.Module) -> Layer | None:
        """The module as a layer of neurons, or None if it is none of this framework's."""

    def reset(self, module: nn.Module) -> None:
        """Reset the module's own state, if it is one of this framework's."""


FRAMEWORKS: tuple[Adapter, ...] = (own, custom, spikingjelly, snntorch, norse, sinabs)
"""In this order; the first that knows a module decides."""
STATEFUL = {a.PACKAGE: a.BASES for a in (spikingjelly, snntorch, norse, sinabs)}
"""The classes that a framework's layers with a state derive from, by its package."""
_lock = threading.RLock()
_tapped: dict[int, Layer] = {}


def framework(module: nn.Module) -> str | None:
    """The package of the framework whose neuron, or other layer with a state, a module is."""
    return next((name for name, bases in STATEFUL.items() if derives_from(module, name, bases)), None)


def layers(model: nn.Module) -> dict[str, Layer]:
    """The layers of neurons of a model, by name, in the order of ``modules()``; also those no tap works with.

    Nothing is imported: modules are recognized by the path of their class.

    >>> [(name, layer.kind) for name, layer in sg.adapters.layers(torch.nn.Sequential(sg.LIF())).items()]
    [('0', 'spikeguard LIF')]
    """
    found: dict[str, Layer] = {}
    for name, module in model.named_modules():
        layer = _tapped.get(id(module))
        layer = layer or next((la for a in FRAMEWORKS if (la := a.layer(module)) is not None), None)
        if layer is not None:
            found[name] = layer
    return found


def reset(model: nn.Module) -> None:
    """Forget the state of all neurons of this model, and of no other.

    What SpikingJelly's ``reset_net``, snnTorch's ``reset_mem`` and sinabs' ``reset_states`` do, module by
    module; norse's state is an argument, spikeguard's own neurons keep none.

    >>> sg.adapters.reset(net)
    """
    for module in model.modules():
        for adapter in FRAMEWORKS:
            adapter.reset(module)
        if (tapped := _tapped.get(id(module))) is not None:
            tapped.restart()


def open_request(layer: Layer, request: TapRequest) -> None:
    """Have a layer do what a tap requests; all taps of a module share one ``Layer``."""
    with _lock:
        _tapped.setdefault(id(layer.module), layer).open(request)


def close_request(layer: Layer, request: TapRequest) -> None:
    """Stop it."""
    with _lock:
        shared = _tapped.get(id(layer.module), layer)
        shared.close(request)
        if not shared.requests:
            _tapped.pop(id(layer.module), None)
