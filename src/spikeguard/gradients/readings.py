"""What is known of the tensors of a forward pass: which hold spikes, of which potential."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from spikeguard.gradients.spike import Reading, Surrogates, spike


class Readings:
    """Remembers readings by their tensor. ``surrogates``: what spikes get; ``keep_own``: straight-through
    expressions keep the gradient of their soft part.

    ``observed``: inside a custom function, whose graph nobody sees, the comparisons made there. ``fired``:
    spikes that are noted instead of made part of the graph. ``zeros`` and ``soft``: terms of straight-through
    expressions. ``recording``: operations are recorded for the graph below autograd, too.
    """

    def __init__(self, surrogates: Surrogates, keep_own: bool = False) -> None:
        self.surrogates, self.keep_own = surrogates, keep_own
        self.readings, self.zeros = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self.soft = WeakTensorKeyDictionary()
        self.observed: list[Reading] | None = None
        self.fired: list[tuple[Reading, Tensor]] | None = None
        self.recording = False

    @contextmanager
    def below_autograd(self) -> Iterator[None]:
        """Operations are recorded for the graph even where a custom operator runs below autograd."""
        before, self.recording = self.recording, True
        try:
            yield
        finally:
            self.recording = before

    @contextmanager
    def without_spikes(self) -> Iterator[list[tuple[Reading, Tensor]]]:
        """Spikes are noted with their values, and are constants for the gradient."""
        before, self.fired = self.fired, []
        try:
            with self.below_autograd():
                yield self.fired
        finally:
            self.fired = before

    @contextmanager
    def observing(self) -> Iterator[list[Reading]]:
        """The comparisons made inside, by value only."""
        before, self.observed = self.observed, []
        try:
            yield self.observed
        finally:
            self.observed = before

    def reading(self, value: object) -> Reading | None:
        """What is known of a tensor."""
        found = self.readings.get(value) if isinstance(value, Tensor) else None
        return found if isinstance(found, Reading) else None

    def note(self, out: object, reading: Reading) -> object:
        """Remember what is known of ``out``."""
        if isinstance(out, Tensor) and out.shape == reading.mask.shape:
            self.readings[out] = reading
        return out

    def fire(self, reading: Reading, value: Tensor, height: float | Tensor | None = None) -> Tensor:
        """``value`` as spikes of the potential that was read, if a graph is wanted here."""
        if self.fired is not None:
            self.fired.append((reading, value.detach()))
        elif torch.is_grad_enabled() and reading.u.requires_grad:
            rise = reading.height if height is None else height
            value = spike(reading.u, value, rise, self.surrogates)
        self.readings[value] = reading
        return value

    def compared(self, mask: object, u: Callable[[], Tensor], low: float = 0.0, height: float = 1.0) -> None:
        """Note a comparison with the potential ``u``, if a gradient can reach it."""
        if not isinstance(mask, Tensor):
            return
        with torch.set_grad_enabled(self.observed is None):
            potential = u()
        if potential.shape != mask.shape or not potential.is_floating_point():
            return
        reading = Reading(potential, mask if mask.dtype == torch.bool else mask > low, low, height)
        if self.observed is not None:
            self.observed.append(reading)
        elif potential.requires_grad:
            self.readings[mask] = reading
