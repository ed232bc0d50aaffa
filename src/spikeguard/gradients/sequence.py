"""Backward passes over a whole sequence: they follow firing rates, or cut the path over time.

Each is an estimator for attacks (``gradient=...``) and a backward pass for a tap (``sg.tap(net,
backward=...)``). ``mean`` below is a neuron's current averaged over time, in units of its threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from spikeguard.adapters.tap import tap
from spikeguard.arguments import checked_fields
from spikeguard.errors import UserError
from spikeguard.gradients.base import Opened, as_module
from spikeguard.kernels.custom_backward import LayerPass, SequenceRule
from spikeguard.models import Model
from spikeguard.surrogates import Triangle


class SequenceGradient(SequenceRule):
    """A backward pass of a whole layer that is an estimator: it replaces that of every layer of neurons."""

    part: ClassVar[str] = "sequences"

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        with tap(as_module(model, type(self).__name__), backward=self):
            yield Opened(model)


@dataclass(frozen=True)
class BPTR(SequenceGradient):
    """Back-propagation over the rate: passed where the neuron fired at all, 0 elsewhere. Ding et al., NeurIPS
    2022.

    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=2, restarts=1, gradient=sg.gradients.BPTR())
    >>> found.backwards > 0
    True
    """

    def back(self, g: Tensor, seen: LayerPass) -> Tensor:
        """The gradient of the currents from that of the spikes, both ``[T, N, ...]``."""
        return g * (seen.spikes.mean(0) > 0)


@dataclass(frozen=True)
@checked_fields
class RGA(SequenceGradient):
    """Rate gradient approximation. Bu et al., AAAI 2023.

    The slope of the rate is ``(1 - gamma + gamma tau) / (1 + tau)`` for ``1 - tau < mean <= 2``, ``gamma``
    for ``0 <= mean <= 1 - tau``, else 0; tau is the decay. UserError unless ``gamma`` is in [0, 1].

    >>> with sg.tap(net, backward=sg.gradients.RGA()):
    ...     logits = net(x)
    >>> torch.equal(logits, net(x))
    True
    """

    gamma: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise UserError(f"RGA: gamma = {self.gamma} must lie in [0, 1]")

    def back(self, g: Tensor, seen: LayerPass) -> Tensor:
        """The gradient of the currents from that of the spikes, both ``[T, N, ...]``."""
        tau, mean = seen.decay, seen.current.mean(0) / seen.threshold
        steep = (1 - self.gamma + self.gamma * tau) / (1 + tau)
        slope = steep * ((mean > 1 - tau) & (mean <= 2)) + self.gamma * ((mean >= 0) & (mean <= 1 - tau))
        return g * slope / seen.threshold


@dataclass(frozen=True)
@checked_fields
class HART(SequenceGradient):
    """Hybrid of rate and time: a triangle at every step, no path over time, averaged over time. Hao et al.,
    ICLR 2024.

    ``gamma``: half of the triangle's width, in units of the potential; UserError unless it is above 0.

    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=2, restarts=1, gradient=sg.gradients.HART(0.5))
    >>> found.x.shape == x.shape
    True
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise UserError(f"HART: gamma = {self.gamma} must be a finite number above 0")

    def back(self, g: Tensor, seen: LayerPass) -> Tensor:
        """The gradient of the currents from that of the spikes, both ``[T, N, ...]``."""
        return (g * Triangle(self.gamma).derivative(seen.u)).mean(0, keepdim=True).expand_as(g)
