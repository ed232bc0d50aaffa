"""``tap``: the one way to read a network's neurons from outside and to change what they compute."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from spikeguard.adapters.base import Layer
from spikeguard.adapters.histograms import KINDS, draw
from spikeguard.adapters.own import OwnLayer
from spikeguard.adapters.registry import close_request, layers, open_request
from spikeguard.arguments import checked
from spikeguard.errors import UserError
from spikeguard.kernels.custom_backward import SequenceRule
from spikeguard.kernels.mode import Band
from spikeguard.neurons.request import Record, TapRequest
from spikeguard.neurons.settings import Noise
from spikeguard.random import draws
from spikeguard.random.streams import NoiseStream
from spikeguard.surrogates import Surrogate

COPIES = (
    "tap: nn.DataParallel runs copies of its module in threads of their own, which no tap sees: use its "
    ".module on one device, or DistributedDataParallel"
)
_streams: WeakKeyDictionary[nn.Module, dict[str, NoiseStream]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Changes:
    """What a tap changes in every layer; ``surrogate`` and ``band`` can be functions of the layer's name.

    ``free``: noise has no stream of the tap's, it comes from the layer's own or from torch's generator.
    ``push`` gives by layer what is added to ``u`` where it is compared, ``[T, N, ...]``: infinite, it holds
    a spike. ``carry`` gets name and module of the layer, then penalty and spikes, and returns the spikes.
    ``when`` says of a module whether its calls are changed.
    """

    noise: Noise | None = None
    surrogate: Surrogate | Callable[[str], Surrogate] | None = None
    band: Band | Callable[[str], Band] | None = None
    detach_reset: bool | None = None
    smooth: bool | None = None
    relu: bool | None = None
    backward: SequenceRule | None = None
    free: bool = False
    carry: Callable[[str, nn.Module, Tensor, Tensor], Tensor] | None = None
    when: Callable[[nn.Module], bool] | None = None
    push: Mapping[str, Tensor] | None = None

    def request(self, name: str, module: nn.Module, source: NoiseStream | None) -> TapRequest:
        """The request to the layer of that name."""
        choose, band = self.surrogate, self.band
        push = None if self.push is None else self.push.get(name)
        return TapRequest(
            surrogate=choose if isinstance(choose, Surrogate) or choose is None else choose(name),
            noise=self.noise,
            source=source,
            band=band if isinstance(band, Band) or band is None else band(name),
            detach_reset=self.detach_reset,
            smooth=self.smooth,
            relu=self.relu,
            backward=self.backward,
            carry=None if self.carry is None else partial(self.carry, name, module),
            when=None if self.when is None else partial(self.when, module),
            push=None if push is None else lambda: push,
        )


class Recordings:
    """What one tap reads of one kind: ``{layer: value}``, a second recording of a layer is ``name#1``.

    Steps of a layer that is stepped from outside are collected until its state is reset.
    """

    def __init__(self, grad: bool) -> None:
        self.grad = grad
        self.values: dict[str, Tensor | list[Tensor]] = {}
        self._runs: dict[str, tuple[object, list[Tensor]]] = {}

    def recorder(self, name: str) -> Record:
        """What a layer of that name calls."""

        def record(value: Tensor, run: object = None) -> None:
            value = value if self.grad else value.detach()
            if run is None:
                self.values[self._free(name)] = value
            elif name in self._runs and self._runs[name][0] is run:
                self._runs[name][1].append(value)
            else:
                self._runs[name] = run, [value]
                self.values[self._free(name)] = self._runs[name][1]

        return record

    def _free(self, name: str) -> str:
        calls = sum(k == name or k.startswith(name + "#") for k in self.values)
        return f"{name}#{calls}" if calls else name

    def read(self, join: Callable[[Tensor], Tensor] = lambda steps: steps) -> dict[str, Tensor]:
        """Everything so far; ``join`` makes one value of the steps, stacked."""
        return {k: join(torch.stack(v)) if isinstance(v, list) else v for k, v in self.values.items()}

    def clear(self) -> None:
        """Forget everything."""
        self.values.clear()
        self._runs.clear()


class Tap:
    """An open or closed tap, as ``tap`` returns it: a context manager that holds what it has read.

    >>> layer = sg.LIF(decay=0.0)
    >>> with sg.tap(layer) as tapped:
    ...     spikes = layer(torch.tensor([[[0.5, 1.5]]]))
    >>> isinstance(tapped, sg.adapters.Tap), tapped.potentials[""].tolist()
    (True, [[[-0.5, 0.5]]])
    """

    def __init__(
        self,
        model: nn.Module,
        changes: Changes,
        seed: int | None,
        *,
        potentials: bool,
        currents: bool,
        grad: bool,
        spikes: bool = False,
    ) -> None:
        self._model, self._layers = model, layers(model)
        if not self._layers:
            raise UserError(
                f"tap: {type(model).__name__} has no neurons that it knows: layers of spikeguard, "
                "SpikingJelly, snnTorch, norse or sinabs, or of a class given to sg.adapters.add"
            )
        if any(isinstance(m, nn.DataParallel) and len(m.device_ids) > 1 for m in model.modules()):
            raise UserError(COPIES)
        self._potentials, self._currents = Recordings(grad), Recordings(grad)
        self._spikes, self._penalties = Recordings(grad), Recordings(grad=True)
        self._requests: dict[str, TapRequest] = {}
        self._hook: RemovableHandle | None = None
        for name, layer in self._layers.items():
            keyed = changes.noise is not None and not changes.free
            request = changes.request(name, layer.module, self._source(name, seed) if keyed else None)
            request.on_current = self._currents.recorder(name) if currents else None
            request.on_potentials = self._potentials.recorder(name) if potentials else None
            request.on_spikes = self._spikes.recorder(name) if spikes else None
            if changes.band is not None:
                request.on_penalty = self._penalties.recorder(name)
            self._requests[name] = request
            if reason := layer.refuses(request):
                raise UserError(f"tap: {name or 'the model'} ({layer.kind}): {reason}")

    def _source(self, name: str, seed: int | None) -> NoiseStream:
        """The stream of a layer's noise: of the seed, or where the model's last tap without one stopped."""
        if seed is not None:
            return NoiseStream(draws.key(seed, name))
        streams = _streams.setdefault(self._model, {})
        return streams.setdefault(name, NoiseStream(draws.key(0, name)))

    @property
    def potentials(self) -> dict[str, Tensor]:
        """``u`` by layer, ``[T, N, ...]``."""
        return self._potentials.read()

    @property
    def currents(self) -> dict[str, Tensor]:
        """What the neurons integrate, by layer, ``[T, N, ...]``."""
        return self._currents.read()

    @property
    def spikes(self) -> dict[str, Tensor]:
        """What the neurons fire, by layer, ``[T, N, ...]``, before any pooling."""
        return self._spikes.read()

    @property
    def penalties(self) -> dict[str, Tensor]:
        """The mean of ``max(0, delta - |u|)`` by layer, a scalar."""
        return self._penalties.read(lambda steps: steps.mean())

    def modules(self) -> list[nn.Module]:
        """The modules of the neurons that it reads."""
        return [layer.module for layer in self._layers.values()]

    @checked
    def draw(self, path: str | Path, *, delta: float | None = None) -> None:
        """Write a picture of what ``potentials`` holds: a histogram of u for each layer, as .svg or .png.

        ``delta``: the band ``|u| < delta`` is shaded and its share written. UserError if nothing was read.

        >>> with sg.tap(net) as tapped:
        ...     logits = net(x)
        >>> tapped.draw("potentials.svg", delta=0.5)
        """
        path = Path(path)
        if path.suffix not in KINDS:
            raise UserError(f"draw: {str(path)!r} must end with {' or '.join(KINDS)}")
        if delta is not None and not 0 < delta < math.inf:
            raise UserError(f"draw: delta = {delta} must be a number above 0")
        if not (potentials := self.potentials):
            raise UserError(
                "draw: the tap has read no potentials: open it as sg.tap(model) or with potentials=True, and "
                "call the model inside"
            )
        draw(potentials, path, delta)

    def clear(self) -> None:
        """Forget what was read so far."""
        for recordings in (self._potentials, self._currents, self._spikes, self._penalties):
            recordings.clear()

    def __enter__(self) -> Self:
        foreign = [layer for layer in self._layers.values() if not isinstance(layer, OwnLayer)]
        try:
            for name, layer in self._layers.items():
                self._requests[name].thread = threading.get_ident()
                open_request(layer, self._requests[name])
        except BaseException:
            self._close()
            raise
        if foreign:
            self._hook = self._model.register_forward_pre_hook(lambda *_: _begin(self._layers))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        for name, layer in self._layers.items():
            close_request(layer, self._requests[name])


def _begin(layers: dict[str, Layer]) -> None:
    for layer in layers.values():
        layer.begin_pass()


@checked
def tap(
    model: nn.Module,
    *,
    noise: float | Noise | None = None,
    seed: int | None = None,
    surrogate: Surrogate | Callable[[str], Surrogate] | None = None,
    detach_reset: bool | None = None,
    smooth: bool = False,
    relu: bool = False,
    backward: SequenceRule | None = None,
    band: Band | Callable[[str], Band] | None = None,
    potentials: bool | None = None,
    currents: bool = False,
    grad: bool = False,
) -> Tap:
    """Read the neurons of ``model``, disturb them, or change their backward pass, while the context is open.

    The neurons may be spikeguard's, SpikingJelly's, snnTorch's, norse's, sinabs', or of a class given to
    ``sg.adapters.add``. ``potentials``: record ``u`` ``[T, N, ...]`` of every layer and recording, detached
    unless ``grad``; the default if no argument but ``grad`` is given. ``currents``: record what the neurons
    integrate. ``noise`` (sigma or Noise): noise in every neuron, in training and evaluation; one draw a step
    for spike and reset. With a ``seed``, every tap draws the same; without one, a model's taps go on where
    the last one stopped, so that a tap opened anew at each training step draws anew. ``surrogate``,
    ``detach_reset``, ``backward``: another backward pass; forward values never change. ``smooth``: the soft
    step in the forward pass. ``relu``: ``max(0, current) / threshold`` instead of neurons. ``band``: record
    the mean of ``max(0, delta - |u|)`` of every layer in ``penalties``, at no extra pass. Layers that are
    stepped from outside have no ``currents``, ``relu`` and ``backward``. A tap sees the calls of the thread
    that opened it. Raises UserError if the model has no neurons it knows, or if one of them cannot do what
    is requested.

    >>> with sg.tap(net) as t:
    ...     logits = net(x)
    >>> [tuple(u.shape[:2]) for u in t.potentials.values()]  # time steps and images, layer by layer
    [(3, 6), (3, 6), (3, 6)]
    """
    if smooth and relu:
        raise UserError("tap: smooth and relu both replace the forward pass; leave one of them out")
    changes = Changes(
        noise=Noise(noise) if isinstance(noise, (int, float)) else noise,
        surrogate=surrogate,
        band=band,
        detach_reset=detach_reset,
        smooth=smooth or None,
        relu=relu or None,
        backward=backward,
    )
    if potentials is None:
        potentials = changes == Changes() and not currents
    return Tap(model, changes, seed, potentials=potentials, currents=currents, grad=grad)
