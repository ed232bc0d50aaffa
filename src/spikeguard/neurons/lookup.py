"""The spiking layers inside a module.

Who they are, the seed of what they draw, a pass that is repeated or leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from torch import Tensor, nn

from spikeguard.neurons.layer import Spiking, TapRequest
from spikeguard.random import draws
from spikeguard.random.streams import NoiseStream, StochasticModule


def spiking(module: nn.Module) -> dict[str, Spiking]:
    """The spiking layers of a module, by name, in the order of ``modules()``."""
    return {name: m for name, m in module.named_modules() if isinstance(m, Spiking)}


@contextmanager
def frozen_norms(module: nn.Module) -> Iterator[None]:
    """Batch norms that are handed to spiking layers leave their running averages as they are."""
    layers = [(layer, layer.recomputing) for layer in spiking(module).values()]
    for layer, _ in layers:
        layer.recomputing = True
    try:
        yield
    finally:
        for layer, recomputing in layers:
            layer.recomputing = recomputing


def seed_noise(module: nn.Module, seed: int) -> None:
    """Make all that the layers draw a function of ``seed``, of the layer and of the number of calls since."""
    for name, layer in module.named_modules():
        if isinstance(layer, StochasticModule):
            layer.source = NoiseStream(draws.key(seed, name))


def recomputation(layer: Spiking) -> AbstractContextManager[None]:
    """To be made before a forward pass and entered for its repetition.

    The layer draws the same noise, and leaves everything as it is.
    """
    requests = [
        replace(s, on_current=s.on_current and _silent, on_potentials=None, on_penalty=None)
        for s in layer.requests
    ]
    own = [m.source for m in layer.modules() if isinstance(m, StochasticModule)]
    sources = {
        id(s): (s, s.calls) for s in (*own, *(request.source for request in requests)) if s is not None
    }
    return _replaying(layer, requests, list(sources.values()))


@contextmanager
def _replaying(
    layer: Spiking, requests: list[TapRequest], sources: list[tuple[NoiseStream, int]]
) -> Iterator[None]:
    before, calls, replayed = layer.requests, [s.calls for s, _ in sources], layer.recomputing
    layer.requests, layer.recomputing = requests, True
    for source, at in sources:
        source.calls = at
    try:
        yield
    finally:
        layer.requests, layer.recomputing = before, replayed
        for (source, _), at in zip(sources, calls, strict=True):
            source.calls = at


def _silent(value: Tensor) -> None:
    """Takes the place of whoever listens while a pass is repeated."""
