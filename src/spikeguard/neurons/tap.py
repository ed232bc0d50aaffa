"""``tap``: the one way to read a network's neurons from outside and to change what they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from torch import Tensor, nn

from spikeguard.arguments import checked
from spikeguard.errors import UserError
from spikeguard.kernels.custom_backward import SequenceRule
from spikeguard.kernels.mode import Band
from spikeguard.neurons import Noise, TapRequest, spiking
from spikeguard.random import draws
from spikeguard.random.streams import NoiseStream
from spikeguard.surrogates import Surrogate


@dataclass(frozen=True)
class Changes:
    """What a tap changes in every layer; ``surrogate`` and ``band`` can be functions of the layer's name.

    ``seed`` None: noise comes from the layer's own stream. ``carry`` and ``when`` are those of
    ``TapRequest``; ``carry`` gets the layer's name first.
    """

    noise: Noise | None = None
    seed: int | None = 0
    surrogate: Surrogate | Callable[[str], Surrogate] | None = None
    band: Band | Callable[[str], Band] | None = None
    detach_reset: bool | None = None
    smooth: bool | None = None
    relu: bool | None = None
    backward: SequenceRule | None = None
    carry: Callable[[str, nn.Module, Tensor, Tensor], Tensor] | None = None
    when: Callable[[nn.Module], bool] | None = None

    def request(self, name: str) -> TapRequest:
        """The request to the layer of that name."""
        choose, band = self.surrogate, self.band
        return TapRequest(
            surrogate=choose if isinstance(choose, Surrogate) or choose is None else choose(name),
            noise=self.noise,
            source=None if self.noise is None or self.seed is None else _stream(self.seed, name),
            band=band if isinstance(band, Band) or band is None else band(name),
            detach_reset=self.detach_reset,
            smooth=self.smooth,
            relu=self.relu,
            backward=self.backward,
            carry=None if self.carry is None else partial(self.carry, name),
            when=self.when,
        )


def _stream(seed: int, name: str) -> NoiseStream:
    return NoiseStream(draws.key(seed, name))


class Tap:
    """An open or closed tap, as ``tap`` returns it: a context manager that holds what it has read.

    ``potentials``, ``currents``: ``{layer: [T, N, ...]}``; ``penalties``: ``{layer: scalar}``. A second call
    of a layer is ``name#1``.
    """

    def __init__(
        self, model: nn.Module, changes: Changes, *, potentials: bool, currents: bool, grad: bool
    ) -> None:
        self._layers = spiking(model)
        if not self._layers:
            raise UserError(f"tap: {type(model).__name__} has no spiking layer of spikeguard (LIF, IF, PLIF)")
        self._grad = grad
        self.potentials: dict[str, Tensor] = {}
        self.penalties: dict[str, Tensor] = {}
        self.currents: dict[str, Tensor] = {}
        self._requests: dict[str, TapRequest] = {}
        for name in self._layers:
            request = changes.request(name)
            request.on_current = self._recorder(self.currents, name) if currents else None
            request.on_potentials = self._recorder(self.potentials, name) if potentials else None
            if changes.band is not None:
                request.on_penalty = self._recorder(self.penalties, name, grad=True)
            self._requests[name] = request

    def _recorder(self, into: dict[str, Tensor], name: str, grad: bool = False) -> Callable[[Tensor], None]:
        def record(value: Tensor) -> None:
            calls = sum(k == name or k.startswith(name + "#") for k in into)
            into[f"{name}#{calls}" if calls else name] = value if grad or self._grad else value.detach()

        return record

    def layers(self) -> list[nn.Module]:
        """The neurons that it reads."""
        return list(self._layers.values())

    def clear(self) -> None:
        """Forget what was read so far."""
        self.potentials.clear()
        self.currents.clear()
        self.penalties.clear()

    def __enter__(self) -> Self:
        for name, layer in self._layers.items():
            layer.requests.append(self._requests[name])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, layer in self._layers.items():
            layer.requests[:] = [s for s in layer.requests if s is not self._requests[name]]


@checked
def tap(
    model: nn.Module,
    *,
    noise: float | Noise | None = None,
    seed: int = 0,
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

    ``potentials``: record ``u`` ``[T, N, ...]`` of every layer and pass, detached unless ``grad``; the
    default if no argument but ``grad`` is given. ``currents``: record what the neurons integrate. ``noise``
    (sigma or Noise) with ``seed``: noise in every neuron, in training and evaluation. ``surrogate``,
    ``detach_reset``, ``backward``: another backward pass; forward values never change. ``smooth``: the soft
    step in the forward pass. ``relu``: ``max(0, current) / threshold`` instead of neurons. ``band``: record
    the mean of ``max(0, delta - |u|)`` of every layer in ``penalties``, at no extra pass. Raises UserError if
    the model has no spiking layer of spikeguard.

    >>> with sg.tap(net) as t:
    ...     logits = net(x)
    >>> [tuple(u.shape[:2]) for u in t.potentials.values()]  # time steps and images, layer by layer
    [(3, 6), (3, 6), (3, 6)]
    """
    if smooth and relu:
        raise UserError("tap: smooth and relu both replace the forward pass; leave one of them out")
    changes = Changes(
        noise=Noise(noise) if isinstance(noise, (int, float)) else noise,
        seed=seed,
        surrogate=surrogate,
        band=band,
        detach_reset=detach_reset,
        smooth=smooth or None,
        relu=relu or None,
        backward=backward,
    )
    if potentials is None:
        potentials = changes == Changes(seed=seed) and not currents
    return Tap(model, changes, potentials=potentials, currents=currents, grad=grad)
