"""The one way to look into a network from outside, and to change what its neurons do while looking."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from torch import Tensor, nn

from spikeguard.errors import UserError
from spikeguard.kernels.custom_backward import SequenceRule
from spikeguard.kernels.mode import Band
from spikeguard.neurons import Noise, TapRequest, spiking
from spikeguard.random import draws
from spikeguard.random.streams import NoiseStream
from spikeguard.surrogates import Surrogate


class tap:
    """Context that reads, disturbs or re-derives the neurons of ``model``; everything is as before when it
    closes.

    ``potentials``: ``{layer: u [T, N, ...]}`` of every forward pass since entry or ``clear()``, detached
    unless ``grad``; a second call of a layer is ``name#1``. Kept only if no other argument but ``grad`` is
    given, or ``potentials=True``. ``noise`` (sigma or Noise) with ``seed``: noise in every neuron, training
    or not. ``surrogate``: another derivative in the backward pass, one for all or a function of the layer's
    name; ``detach_reset``: with or without the path through the reset; ``backward``: another pass over the
    whole sequence (``bptr``, ``rga``, ``hart``); forward values never change. ``smooth``: soft spikes in the
    forward pass; ``relu``: neurons without time instead, ``max(0, current) / threshold``. ``band``, one or a
    function of the layer's name: the mean of ``max(0, delta - |u|)`` per layer, in ``penalties``, at no extra
    pass. ``currents``: what the neurons integrate, likewise. Raises UserError if the model has no neuron it
    knows.
    """

    def __init__(
        self,
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
    ) -> None:
        self._layers = spiking(model)
        if not self._layers:
            raise UserError(f"tap: {type(model).__name__} has no spiking layer of spikeguard (LIF, IF, PLIF)")
        plain = (
            noise is None and surrogate is None and band is None and backward is None and detach_reset is None
        )
        plain = plain and not (smooth or relu or currents)
        self._keep = plain if potentials is None else potentials
        self._grad = grad
        self.potentials: dict[str, Tensor] = {}
        self.penalties: dict[str, Tensor] = {}
        self.currents: dict[str, Tensor] = {}
        self._requests = {
            name: TapRequest(
                surrogate=surrogate
                if isinstance(surrogate, Surrogate) or surrogate is None
                else surrogate(name),
                noise=Noise(noise) if isinstance(noise, (int, float)) else noise,
                source=None if noise is None else NoiseStream(draws.key(seed, name)),
                band=band if isinstance(band, Band) or band is None else band(name),
                detach_reset=detach_reset,
                smooth=smooth or None,
                relu=relu or None,
                backward=backward,
                on_current=self._recorder(self.currents, name) if currents else None,
                on_potentials=self._recorder(self.potentials, name) if self._keep else None,
                on_penalty=self._recorder(self.penalties, name, grad=True) if band is not None else None,
            )
            for name in self._layers
        }

    def _recorder(self, into: dict[str, Tensor], name: str, grad: bool = False) -> Callable[[Tensor], None]:
        def record(value: Tensor) -> None:
            calls = sum(k == name or k.startswith(name + "#") for k in into)
            into[f"{name}#{calls}" if calls else name] = value if grad or self._grad else value.detach()

        return record

    def clear(self) -> None:
        """Forget what was read so far."""
        self.potentials.clear()
        self.currents.clear()
        self.penalties.clear()

    def __enter__(self) -> tap:
        for name, layer in self._layers.items():
            layer.requests.append(self._requests[name])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, layer in self._layers.items():
            layer.requests[:] = [s for s in layer.requests if s is not self._requests[name]]
