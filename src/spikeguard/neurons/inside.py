"""The spiking layers inside a module: who they are, the seed of what they draw, a pass that is repeated or leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from torch import Tensor, nn

from spikeguard import draws
from spikeguard.dynamics import Drawing, Source
from spikeguard.neurons.layer import Seam, Spiking


def spiking(module: nn.Module) -> dict[str, Spiking]:
    """The spiking layers of a module, by name, in the order of ``modules()``."""
    return {name: m for name, m in module.named_modules() if isinstance(m, Spiking)}


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Batch norms that are handed to spiking layers leave their running averages as they are."""
    layers = [(layer, layer.replays) for layer in spiking(module).values()]
    for layer, _ in layers:
        layer.replays = True
    try:
        yield
    finally:
        for layer, replays in layers:
            layer.replays = replays


def seed_noise(module: nn.Module, seed: int) -> None:
    """Make all that the layers draw a function of ``seed``, of the layer and of the number of calls since."""
    for name, layer in module.named_modules():
        if isinstance(layer, Drawing):
            layer.source = Source(draws.key(seed, name))


def replaying(layer: Spiking) -> AbstractContextManager[None]:
    """To be made before a forward pass and entered for its repetition: the layer draws the same noise, and leaves everything as it is."""
    seams = [replace(s, on_current=s.on_current and _silent, on_potentials=None, on_penalty=None) for s in layer.seams]
    own = [m.source for m in layer.modules() if isinstance(m, Drawing)]
    sources = {id(s): (s, s.calls) for s in (*own, *(seam.source for seam in seams)) if s is not None}
    return _replaying(layer, seams, list(sources.values()))


@contextmanager
def _replaying(layer: Spiking, seams: list[Seam], sources: list[tuple[Source, int]]) -> Iterator[None]:
    before, calls, replayed = layer.seams, [s.calls for s, _ in sources], layer.replays
    layer.seams, layer.replays = seams, True
    for source, at in sources:
        source.calls = at
    try:
        yield
    finally:
        layer.seams, layer.replays = before, replayed
        for (source, _), at in zip(sources, calls, strict=True):
            source.calls = at


def _silent(value: Tensor) -> None:
    """Takes the place of whoever listens while a pass is repeated."""
