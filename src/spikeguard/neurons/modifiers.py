"""Changes of a layer's neurons that other defenses need: before, in, and after the loop over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from spikeguard.random.streams import StochasticModule


@dataclass(frozen=True)
class Homeostasis:
    """A threshold for each neuron, ``theta[t] = theta[t-1] + rate (H[t] - goal[t])``.

    ``rate`` is ``[...]``, ``goal`` ``[T, ...]``.
    """

    rate: Tensor
    goal: Tensor


D = TypeVar("D", bound="Dynamics")


class Dynamics(StochasticModule):
    """A change of one layer; every method is optional.

    Currents and spikes are ``[T, N, ...]``, after batch norm and before pooling.
    """

    def charge(self, current: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        """The changed current, and the decay ``[T, N or 1, ...]`` or None for the layer's own.

        A current ``[1, N, ...]`` is constant over time.
        """
        return current, None

    def homeostasis(self) -> Homeostasis | None:
        """A threshold that moves."""
        return None

    def gate(self, spikes: Tensor) -> Tensor:
        """Change the spikes after the reset, which does not depend on this."""
        return spikes

    def activation(self, current: Tensor) -> Tensor | None:
        """Activations instead of spiking neurons, for a current ``[1, N, ...]``."""
        return None


class Chain(nn.ModuleList):
    """The changes of one layer; the last one that has a decay, threshold or activation decides."""

    def parts(self) -> list[Dynamics]:
        """The changes, in order."""
        return [part for part in self if isinstance(part, Dynamics)]

    def charge(self, current: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        decay = None
        for part in self.parts():
            current, own = part.charge(current, timesteps)
            decay = decay if own is None else own
        return current, decay

    def homeostasis(self) -> Homeostasis | None:
        return next((h for part in reversed(self.parts()) if (h := part.homeostasis()) is not None), None)

    @property
    def gated(self) -> bool:
        """Does any of them change the spikes?"""
        return any(type(part).gate is not Dynamics.gate for part in self.parts())

    def gate(self, spikes: Tensor) -> Tensor:
        for part in self.parts():
            spikes = part.gate(spikes)
        return spikes

    @property
    def analog(self) -> bool:
        """Do activations replace the neurons?"""
        return any(type(part).activation is not Dynamics.activation for part in self.parts())

    def activation(self, current: Tensor) -> Tensor | None:
        return next(
            (a for part in reversed(self.parts()) if (a := part.activation(current)) is not None), None
        )

    def get(self, kind: type[D]) -> D:
        """The part of that class."""
        return next(part for part in self if isinstance(part, kind))


class Input(StochasticModule):
    """A change of the images ``[T or 1, N, C, H, W]`` in [0, 1] before they are normalized.

    ``timesteps`` is the network's.
    """

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        """The images that the network gets."""
        return x
