"""Changes of a layer's neurons that rivals of TGO need, beside the one equation of ``neurons``: in the loop over time, before it, behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from spikeguard import draws
from spikeguard.kernels.layout import Layout


@dataclass
class Source:
    """Where noise comes from: call number k of a layer draws from ``(seed, k)``."""

    seed: int
    calls: int = 0

    def next(self) -> int:
        self.calls += 1
        return draws.key(self.seed, self.calls)


class Drawing(nn.Module):
    """A module that draws random numbers: from ``source`` where one is set, else from torch's generator, as a dropout layer would."""

    def __init__(self) -> None:
        super().__init__()
        self.source: Source | None = None

    def key(self) -> int:
        """The key of this call's draws."""
        return self.source.next() if self.source else int(torch.randint(2**62, ()).item())

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform draws in (0, 1) of a shape ``[T, N, ...]``, laid out in memory like ``like``; sample n's do not depend on the batch size."""
        rows = torch.arange(like.shape[1], device=like.device)
        layout = Layout.of(like)
        drawn = draws.uniform(self.key(), rows, like.numel() // like.shape[1]).view(len(rows), len(like), -1)
        return layout.full(drawn.transpose(0, 1).reshape(len(like), -1)).to(like.dtype)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal draws, likewise."""
        keys = draws.step_keys(self.key(), torch.arange(like.shape[1], device=like.device), len(like))
        return Layout.of(like).full(draws.normal(keys, like[0, 0].numel(), len(like)).view(len(like), -1)).to(like.dtype)


@dataclass(frozen=True)
class Homeostasis:
    """A threshold of every neuron's own, ``theta[t] = theta[t-1] + rate (H[t] - goal[t])``: ``rate`` ``[...]``, ``goal`` ``[T, ...]``."""

    rate: Tensor
    goal: Tensor


D = TypeVar("D", bound="Dynamics")


class Dynamics(Drawing):
    """What differs in one layer; every part is optional. Currents and spikes are ``[T, N, ...]``, after batch norm and before pooling."""

    def charge(self, current: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        """The current (``[1, N, ...]``: the same at all steps), changed, and the decay ``[T, N or 1, ...]``, None for the layer's own."""
        return current, None

    def homeostasis(self) -> Homeostasis | None:
        """A threshold that moves."""
        return None

    def gate(self, spikes: Tensor) -> Tensor:
        """What becomes of the spikes on their way out; the reset does not see it."""
        return spikes

    def instead(self, current: Tensor) -> Tensor | None:
        """Activations in place of spiking neurons, for a current ``[1, N, ...]``."""
        return None


class Chain(nn.ModuleList):
    """The changes of one layer, one after the other; decay, threshold and activation are those of the last one that has any."""

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
        """Does any of them touch the spikes on their way out?"""
        return any(type(part).gate is not Dynamics.gate for part in self.parts())

    def gate(self, spikes: Tensor) -> Tensor:
        for part in self.parts():
            spikes = part.gate(spikes)
        return spikes

    @property
    def analog(self) -> bool:
        """Do activations take the place of the neurons?"""
        return any(type(part).instead is not Dynamics.instead for part in self.parts())

    def instead(self, current: Tensor) -> Tensor | None:
        return next((a for part in reversed(self.parts()) if (a := part.instead(current)) is not None), None)

    def of(self, kind: type[D]) -> D:
        """The part of that class."""
        return next(part for part in self if isinstance(part, kind))


@contextmanager
def keeping(model: nn.Module) -> Iterator[None]:
    """Whatever sources of random numbers are set inside, afterwards all are as before, and so many calls old."""
    drawing = [m for m in model.modules() if isinstance(m, Drawing)]
    before = [(m, m.source, m.source.calls if m.source else 0) for m in drawing]
    try:
        yield
    finally:
        for m, source, calls in before:
            m.source = source
            if source is not None:
                source.calls = calls


class Input(Drawing):
    """A change of the images ``[T or 1, N, C, H, W]`` in [0, 1] before they are normalised; ``timesteps`` is the network's."""

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        """The images the network gets to see."""
        return x
