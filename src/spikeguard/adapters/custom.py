"""Neurons of the user's own: a class, where it fires, its threshold, and how its state is reset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from spikeguard.adapters.base import Layer, Raw
from spikeguard.errors import UserError
from spikeguard.neurons.request import TapRequest

DETACH = "its reset is its own; no adapter detaches it"


@dataclass(frozen=True)
class Registered:
    """What ``add`` was given."""

    fire: str
    threshold: Callable[[nn.Module], Tensor | float]
    reset: Callable[[nn.Module], object]
    steps: bool


_KINDS: dict[type[nn.Module], Registered] = {}


def add(
    kind: type[nn.Module],
    *,
    fire: str,
    threshold: Callable[[nn.Module], Tensor | float],
    reset: Callable[[nn.Module], object] = lambda layer: None,
    steps: bool = True,
) -> None:
    """Teach taps a class of neurons.

    ``fire``: name of the attribute that the layer calls with its potential ``[N, ...]``, once a step, and
    that gives the spikes. ``threshold(layer)``: the potential at which it fires; 0 if ``fire`` gets the
    distance already. ``reset(layer)``: forget the state. ``steps``: one call of the layer computes one step;
    else a whole sequence. Raises UserError if ``kind`` is no class of modules.

    >>> class Cell(torch.nn.Module):
    ...     v, spike = 0.0, staticmethod(lambda v: (v >= 1.0).to(v.dtype))
    ...     def forward(self, x):
    ...         self.v = self.v + x
    ...         spikes = self.spike(self.v)
    ...         self.v = self.v - spikes
    ...         return spikes
    >>> sg.adapters.add(Cell, fire="spike", threshold=lambda c: 1.0, reset=lambda c: setattr(c, "v", 0.0))
    >>> cell = Cell()
    >>> with sg.tap(cell) as t:
    ...     spikes = [cell(torch.full((1, 1), 0.75)) for _ in range(3)]
    >>> t.potentials[""].flatten().tolist()
    [-0.25, 0.5, 0.25]
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(f"adapters.add: {kind!r} must be a class of torch modules")
    _KINDS[kind] = Registered(fire, threshold, reset, steps)


def remove(kind: type[nn.Module]) -> None:
    """Forget what ``add`` was given for a class.

    >>> sg.adapters.remove(torch.nn.Identity)
    """
    _KINDS.pop(kind, None)


class CustomLayer(Layer):
    """A layer of a registered class."""

    def __init__(self, module: nn.Module, refused: str = "") -> None:
        super().__init__(module, refused)
        self.given = _given(module)

    @property
    def threshold(self) -> Tensor | float:
        return self.given.threshold(self.module)

    @property
    def whole(self) -> bool:
        return not self.given.steps

    def reset(self) -> None:
        """What was registered."""
        self.given.reset(self.module)

    def fresh(self, *args: Raw, **kwargs: Raw) -> bool:
        return False

    def seams(self) -> Mapping[str, Raw]:
        return {self.given.fire: self._fire}

    def _fire(self, h: Tensor, *rest: Raw, **more: Raw) -> Tensor:
        own = self.own(self.given.fire)
        return self.fire(h - self.threshold, lambda v: own(v, *rest, **more), h)

    def refuses(self, request: TapRequest) -> str:
        if not hasattr(self.module, self.given.fire):
            return f"it has no attribute {self.given.fire!r}, which was registered as its fire"
        return DETACH if request.detach_reset is not None else super().refuses(request)


def _given(module: nn.Module) -> Registered:
    return next(_KINDS[c] for c in type(module).__mro__ if c in _KINDS)


def layer(module: nn.Module) -> Layer | None:
    """The module as a layer, or None if its class is not registered."""
    return CustomLayer(module) if any(c in _KINDS for c in type(module).__mro__) else None


def reset(module: nn.Module) -> None:
    """What was registered for the module's class."""
    if any(c in _KINDS for c in type(module).__mro__):
        _given(module).reset(module)
