"""Backward passes over a whole sequence: they follow firing rates, or cut the path through time.
``sg.tap(net, backward=...)`` or ``gradient=...``.

``xbar`` is a neuron's current averaged over time, in units of its threshold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from spikeguard.errors import UserError
from spikeguard.gradients.base import Opened, as_module
from spikeguard.kernels.custom_backward import LayerPass
from spikeguard.models import Model
from spikeguard.neurons.tap import tap
from spikeguard.surrogates import Triangle


@dataclass(frozen=True)
class SequenceGradient:
    """An estimator that replaces the backward pass of every layer of neurons."""

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        with tap(as_module(model, type(self).__name__), backward=self):
            yield Opened(model)

    def back(self, g: Tensor, seen: LayerPass) -> Tensor:
        """As of ``kernels.rewired.Sequence``."""
        raise TypeError(f"{type(self).__name__} has no backward pass")


@dataclass(frozen=True)
class BPTR(SequenceGradient):
    """Back-propagation through the rate: passed where the neuron fired at all, 0 elsewhere.

    Ding et al., NeurIPS 2022.
    """

    def back(self, g: Tensor, seen: LayerPass) -> Tensor:
        return g * (seen.spikes.mean(0) > 0)


@dataclass(frozen=True)
class RGA(SequenceGradient):
    """Rate gradient approximation. Bu et al., AAAI 2023.

    The slope of the rate is ``(1 - gamma + gamma tau) / (1 + tau)`` for ``1 - tau < xbar <= 2``, ``gamma``
    for ``0 <= xbar <= 1 - tau``, else 0; tau is the decay.
    """

    gamma: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise UserError(f"rga: gamma = {self.gamma} must lie in [0, 1]")

    def back(self, g: Tensor, seen: LayerPass) -> Tensor:
        tau, mean = seen.decay, seen.current.mean(0) / seen.threshold
        steep = (1 - self.gamma + self.gamma * tau) / (1 + tau)
        slope = steep * ((mean > 1 - tau) & (mean <= 2)) + self.gamma * ((mean >= 0) & (mean <= 1 - tau))
        return g * slope / seen.threshold


@dataclass(frozen=True)
class HART(SequenceGradient):
    """Hybrid of rate and time.

    Triangle of half-width ``gamma`` at every step, no path through time, averaged over time. Hao et al., ICLR
    2024.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not (self.gamma > 0 and math.isfinite(self.gamma)):
            raise UserError(f"hart: gamma = {self.gamma} must be a finite number above 0")

    def back(self, g: Tensor, seen: LayerPass) -> Tensor:
        return (g * Triangle(self.gamma).derivative(seen.u)).mean(0, keepdim=True).expand_as(g)
