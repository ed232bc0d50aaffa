"""What the constants of a NIR neuron mean in discrete time: NIR does not say, so every tool decides.

NIR describes a leaky neuron by ``tau v' = (v_leak - v) + r I`` and an unleaky one by ``v' = r I``; it fires
above its threshold. Time steps, soft resets and firing exactly at the threshold are not part of a graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from spikeguard.errors import UserError, unknown

UNLEAKY = 2.0**60
"""Time constant, in steps, of a leaky neuron that keeps all of its potential, to the last bit."""
EMPTIES = 2.0**-10
"""Time constant, in steps, at which ``exp(-1 / tau)`` is 0."""


@dataclass(frozen=True)
class Convention:
    """How one tool turns the constants of a NIR neuron into a time step.

    ``exponential``: a step keeps ``exp(-dt / tau)`` of the potential instead of ``1 - dt / tau``.
    ``as_is``: the current is added unchanged, whatever ``r`` is. ``fires_at``: a neuron fires at its
    threshold, too. ``dt`` None: the caller's. ``leaky``: where unleaky neurons are written as leaky ones,
    because the tool misreads NIR's own: 'vectors', 'always' or 'never'. ``plain``: the tool knows neither
    average pooling nor linear layers without bias.
    """

    name: str
    dt: float | None
    exponential: bool = False
    as_is: bool = False
    fires_at: bool = False
    leaky: str = "never"
    plain: bool = False

    def step(self, dt: float | None) -> float | None:
        """Length of a time step in seconds, or None if neither the tool nor the caller has one."""
        if dt is not None and not 0 < dt < math.inf:
            raise UserError(f"NIR: dt = {dt} must be a positive number")
        if dt is not None and self.dt is not None and dt != self.dt:
            raise UserError(f"NIR: dt = {dt}, but convention {self.name!r} has a time step of {self.dt}")
        return self.dt if dt is None else dt

    def decay(self, tau: float, dt: float) -> float:
        """Share of the potential that a step keeps."""
        return math.exp(-dt / tau) if self.exponential else 1 - dt / tau

    def gain(self, tau: float, r: float, dt: float) -> float:
        """What a step multiplies the current by."""
        if self.as_is:
            return 1.0
        return r * (1 - self.decay(tau, dt)) if self.exponential else r * dt / tau

    def tau(self, decay: float, dt: float) -> float:
        """The time constant with which a step keeps ``decay``."""
        if decay == 1:
            return UNLEAKY * dt
        if self.exponential:
            return EMPTIES * dt if decay == 0 else -dt / math.log(decay)
        return dt / (1 - decay)

    def resistance(self, tau: float, dt: float) -> float:
        """The resistance with which a step adds the current unchanged."""
        if not self.exponential:
            return tau / dt
        return tau / dt if tau >= UNLEAKY * dt else 1 / (1 - self.decay(tau, dt))

    def written_threshold(self, threshold: float) -> float:
        """The threshold to write, so that firing above it is firing at ours."""
        return _float32(threshold) if self.fires_at else _neighbor(threshold, -math.inf)

    def read_threshold(self, threshold: float) -> float:
        """The reverse."""
        return threshold if self.fires_at else _neighbor(threshold, math.inf)

    def written_tau(self, tau: float, dt: float) -> float:
        """The time constant to write: for ``exponential``, the float32 that gives the nearest float32 decay."""
        if not self.exponential or not EMPTIES * dt < tau < UNLEAKY * dt:
            return tau
        near = torch.tensor(tau, dtype=torch.float32).view(torch.int32) + torch.arange(-32, 33).int()
        candidates = near.view(torch.float32)
        decays = torch.exp(-torch.tensor(dt, dtype=torch.float32) / candidates).double()
        return float(candidates[(decays - _float32(self.decay(tau, dt))).abs().argmin()])


CONVENTIONS = {
    c.name: c
    for c in (
        Convention("euler", None),
        Convention("snntorch", 1e-4, leaky="always"),
        Convention("sinabs", 1.0, exponential=True, as_is=True, fires_at=True, leaky="vectors", plain=True),
    )
}


def convention(name: str) -> Convention:
    """The convention of that name; UserError on an unknown one."""
    if name not in CONVENTIONS:
        raise unknown("convention", name, CONVENTIONS, "NIR: ")
    return CONVENTIONS[name]


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def _neighbor(value: float, towards: float) -> float:
    """The float32 beside ``value``."""
    ends = torch.tensor([value, towards], dtype=torch.float32)
    return float(torch.nextafter(ends[0], ends[1]))
