"""Another derivative in the neurons, the forward pass unchanged to the bit.

In our networks ``tap`` replaces the surrogate. In a network of another framework, spikes are read while the
gradient is taken, however they are written: see ``functions.py`` and ``comparisons.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from inspect import signature

from torch import Tensor, nn

from spikeguard.adapters.registry import layers
from spikeguard.adapters.tap import tap
from spikeguard.arguments import checked_fields
from spikeguard.gradients.base import Gradient, Opened, derive
from spikeguard.gradients.functions import FunctionReader
from spikeguard.gradients.spike import Choice, Surrogates
from spikeguard.losses import Loss, margin
from spikeguard.models import Model
from spikeguard.neurons import TapRequest, spiking
from spikeguard.surrogates import Atan, Surrogate


def known(model: Model) -> bool:
    """Whether the model has spiking neurons of this library."""
    return isinstance(model, nn.Module) and any(
        not layer.dynamics.analog for layer in spiking(model).values()
    )


def tappable(model: Model, request: TapRequest) -> bool:
    """Whether a tap can do this in all neurons of the model, ours or another framework's."""
    if not isinstance(model, nn.Module):
        return False
    found = layers(model).values()
    return (
        bool(found) and (known(model) or not spiking(model)) and not any(la.refuses(request) for la in found)
    )


PARTS = {
    "sequences": TapRequest(relu=True),
    "soft steps": TapRequest(smooth=True),
    "resets": TapRequest(detach_reset=False),
}
"""What estimators change in neurons beside their surrogate (their ``part``)."""


def neuron_traits(model: Model) -> frozenset[str]:
    """'neurons' if a tap works with the model's neurons, and 'no PART' for each part it cannot change."""
    if not tappable(model, TapRequest(surrogate=Atan())):
        return frozenset()
    missing = {f"no {part}" for part, request in PARTS.items() if not tappable(model, request)}
    forward = model.forward if isinstance(model, nn.Module) else model
    if "per_step" not in signature(forward).parameters:
        missing.add("no step logits")
    return frozenset({"neurons", *missing})


@dataclass
class SwapOpened(Opened):
    """``choose(layer)`` names the surrogate, anew at every gradient; ``detach_reset`` as in ``tap``."""

    choose: Choice = field(default=lambda name: Surrogate())  # type: ignore[abstract]
    detach_reset: bool | None = None

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> Gradient:
        self.forwards += len(x)
        self.backwards += len(x)
        reset = self.detach_reset is not None and tappable(self.model, TapRequest(detach_reset=True))
        if not known(self.model) and not reset:
            return derive_replaced(self.model, x, y, loss, self.choose)
        with tap(self.model, surrogate=self.choose, detach_reset=self.detach_reset):  # type: ignore[arg-type]
            return derive(self.model, x, y, loss)


@dataclass(frozen=True)
@checked_fields
class SwapSurrogate:
    """Another surrogate in all neurons. Neftci et al., IEEE Signal Processing Magazine 2019.

    ``detach_reset``: cut (True) or keep (False) the gradient of the reset; None leaves it as it is. In
    networks of other frameworks it needs neurons that a tap works with; else only the surrogate is replaced.

    >>> sharper = sg.gradients.SwapSurrogate(sg.surrogates.Atan(4.0))
    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=2, restarts=1, gradient=sharper)
    >>> found.x.shape == x.shape
    True
    """

    surrogate: Surrogate
    detach_reset: bool | None = None

    @property
    def part(self) -> str:
        """What it changes in neurons beside their surrogate."""
        return "" if self.detach_reset is None else "resets"

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        yield SwapOpened(model, choose=lambda name: self.surrogate, detach_reset=self.detach_reset)


def derive_replaced(
    model: Model,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    choose: Choice,
    keep_own: bool = False,
    around: Callable[[Tensor], AbstractContextManager[object]] | None = None,
    unread: set[str] | None = None,
) -> Gradient:
    """``derive``, where every spike that can be read has the derivative of ``choose(number)``.

    ``keep_own``: only the spikes that have no gradient of their own. ``around(x)``: a context of the forward
    pass that opens what is detached. ``unread`` gets the names of what gives
    spikes whose potential could not be read.
    """
    surrogates = Surrogates(choose)
    reader = FunctionReader(surrogates, keep_own, opens=around is not None)
    with reader.meeting():

        def forward(images: Tensor) -> Tensor:
            if around is not None:
                reader.around = around(images)
            with reader.around, reader:
                return model(images)

        try:
            return derive(forward, x, y, loss, surrogates.number)
        finally:
            if unread is not None:
                unread |= reader.unread


def unread_spikes(model: Model, x: Tensor, y: Tensor) -> set[str]:
    """Names of what gives spikes, met on the way from images to logits, whose potential cannot be read."""
    unread = set[str]()
    if not known(model):
        with suppress(Exception):  # whatever the model raises: its gradients are judged elsewhere
            derive_replaced(model, x, y, margin, lambda _: Atan(), unread=unread)
    return unread
