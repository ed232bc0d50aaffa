"""What is known of the tensors of a forward pass: which hold spikes, of which potential."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from spikeguard.gradients.spike import Reading, Surrogates, spike

RECENT = 8
"""Comparisons that straight-through expressions are looked for among."""


class Compared(NamedTuple):
    """The values of spikes that a comparison gives, its potential, and the height of a jump."""

    value: Tensor
    u: Tensor
    height: float | Tensor


class Readings:
    """Remembers readings by their tensor. ``surrogates``: what spikes get; ``keep_own``: straight-through
    expressions keep the gradient of their soft part.

    ``observed``: inside a custom function, whose graph nobody sees, the comparisons made there. ``fired``:
    spikes that are noted instead of made part of the graph. ``zeros`` and ``soft``: terms of straight-through
    expressions. ``sources``: what rising functions were given. ``origins``: what was detached.
    ``indices``: of a mask. ``recent``: the
    last comparisons. ``recording``: operations are recorded for the graph below autograd, too. ``inside``: a
    function with a gradient of its own is computed again. ``opens``: the gradient passes what is detached.
    ``unread``: names of what gives spikes whose potential could not be read.
    """

    def __init__(self, surrogates: Surrogates, keep_own: bool = False, opens: bool = False) -> None:
        self.surrogates, self.keep_own, self.opens = surrogates, keep_own, opens
        self.readings, self.zeros = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self.soft, self.sources = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self.origins, self.indices = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self.recent: deque[Reading | Compared] = deque(maxlen=RECENT)
        self.unread: set[str] = set()
        self.inside = False
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

    def wanted(self, value: object) -> bool:
        """Is a gradient taken here that may reach ``value``?"""
        here = self.observed is None and torch.is_grad_enabled()
        return here and isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad

    def fire(
        self,
        reading: Reading,
        value: Tensor,
        height: float | Tensor | None = None,
        own: bool = False,
    ) -> Tensor:
        """``value`` as spikes of the potential that was read, if a graph is wanted here.

        ``own``: in the network itself, a gradient passes these spikes.
        """
        if self.fired is not None:
            self.fired.append((reading, value.detach()))
        elif torch.is_grad_enabled() and reading.u.requires_grad:
            rise = reading.height if height is None else height
            value = spike(reading.u, value, rise, self.surrogates, own or self.inside)
        self.readings[value] = reading
        return value

    def fire_levels(self, u: Tensor, value: Tensor, height: Tensor, own: bool = False) -> Tensor:
        """``value`` as spikes of more than two levels, ``height`` apart at the nearest threshold."""
        self.recent.append(Compared(value.detach(), u, height))
        if self.fired is not None or not torch.is_grad_enabled() or not u.requires_grad:
            return value
        return spike(u, value, height, self.surrogates, own or self.inside)

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
            self.recent.append(reading)
