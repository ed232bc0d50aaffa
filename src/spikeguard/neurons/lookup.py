"""The spiking layers of a module: their names, the seed of their noise, passes that leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from torch import Tensor, nn

from spikeguard.neurons.layer import Spiking
from spikeguard.neurons.request import TapRequest, active
from spikeguard.random import draws
from spikeguard.random.streams import NoiseStream, StochasticModule


def spiking(module: nn.Module) -> dict[str, Spiking]:
    """The spiking layers of a module, by name, in the order of ``modules()``.

    >>> len(sg.neurons.spiking(net))
    3
    """
    return {name: m for name, m in module.named_modules() if isinstance(m, Spiking)}


@contextmanager
def frozen_norms(module: nn.Module) -> Iterator[None]:
    """Inside, the batch norms of spiking layers do not move their running averages.

    >>> with sg.neurons.frozen_norms(net):
    ...     net(x).shape
    torch.Size([6, 10])
    """
    layers = [(layer, layer.recomputing) for layer in spiking(module).values()]
    for layer, _ in layers:
        layer.recomputing = True
    try:
        yield
    finally:
        for layer, recomputing in layers:
            layer.recomputing = recomputing


def seed_noise(module: nn.Module, seed: int) -> None:
    """Make everything that layers draw a function of ``seed``, the layer and the number of calls since.

    >>> layer, current, drawn = sg.LIF(noise=sg.Noise(0.5)), torch.rand(4, 2, 50), []
    >>> for _ in range(2):
    ...     sg.neurons.seed_noise(layer, 1)
    ...     drawn.append(layer(current))
    >>> torch.equal(*drawn)
    True
    """
    for name, layer in module.named_modules():
        if isinstance(layer, StochasticModule):
            layer.source = NoiseStream(draws.key(seed, name))


def recomputation(layer: Spiking) -> AbstractContextManager[None]:
    """A context to create before a forward pass and to enter for its repetition.

    Inside, the layer draws the same noise, notifies no tap and moves no running average.

    >>> layer, current = sg.LIF(noise=sg.Noise(0.5)), torch.rand(4, 2, 50)
    >>> sg.neurons.seed_noise(layer, 1)
    >>> again = sg.neurons.recomputation(layer)
    >>> spikes = layer(current)
    >>> with again:
    ...     torch.equal(layer(current), spikes)
    True
    """
    requests = [
        replace(
            s,
            on_current=s.on_current and _ignore,
            on_potentials=None,
            on_penalty=None,
            carry=None,
            when=None,
            thread=None,
        )
        for s in active(layer.requests)
    ]
    own = [m.source for m in layer.modules() if isinstance(m, StochasticModule)]
    sources = {
        id(s): (s, s.calls) for s in (*own, *(request.source for request in requests)) if s is not None
    }
    return _recomputing(layer, requests, list(sources.values()))


@contextmanager
def _recomputing(
    layer: Spiking, requests: list[TapRequest], sources: list[tuple[NoiseStream, int]]
) -> Iterator[None]:
    requests_before, calls, before = layer.requests, [s.calls for s, _ in sources], layer.recomputing
    layer.requests, layer.recomputing = requests, True
    for source, at in sources:
        source.calls = at
    try:
        yield
    finally:
        layer.requests, layer.recomputing = requests_before, before
        for (source, _), at in zip(sources, calls, strict=True):
            source.calls = at


def _ignore(value: Tensor, run: object = None) -> None:
    """Replaces a tap's callback while a pass is repeated."""
