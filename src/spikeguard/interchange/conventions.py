"""What the constants of a NIR neuron mean in discrete time: NIR does not say, so every tool decides.

NIR describes a leaky neuron by ``tau v' = (v_leak - v) + r I`` and an unleaky one by ``v' = r I``; it fires
above its threshold. Time steps, soft resets and firing exactly at the threshold are not part of a graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from spikeguard.errors import UserError, unknown

UNLEAKY = 2.0**60
"""Time constant, in steps, of a leaky neuron that keeps all of its potential, to the last bit."""
EMPTIES = 2.0**-10
"""Time constant, in steps, at which ``exp(-1 / tau)`` is 0."""


@dataclass(frozen=True)
class Convention:
    """How one tool turns the constants of a NIR neuron into a time step.

    ``dt`` None: the caller's. ``exponential``: a step keeps ``exp(-dt / tau)`` of the potential instead of
    ``1 - dt / tau``. ``as_is``: the current is added unchanged, whatever ``r`` is; ``as_lost``: times
    ``dt / tau``, the share that a step loses, whatever ``r`` is. ``fires_at``: a neuron
    fires at its threshold, too. ``leaky``: where unleaky neurons are written as leaky ones because the tool
    misreads NIR's own: 'vectors', 'always' or 'never'.
    """

    name: str
    dt: float | None
    exponential: bool = False
    as_is: bool = False
    as_lost: bool = False
    fires_at: bool = False
    leaky: Literal["never", "vectors", "always"] = "never"
    only_hard: bool = False
    """The tool resets every layer to 0."""
    keeps: bool = False
    """The tool refuses neurons that keep nothing of their potential."""
    chain: bool = False
    """The tool reads chains of layers only, no average pooling, and no linear layer without bias."""

    def step(self, dt: float | None) -> float | None:
        """Length of a time step in seconds, or None if neither the tool nor the caller has one."""
        if dt is not None and not 0 < dt < math.inf:
            raise UserError(f"NIR: dt = {dt} must be a positive number")
        if dt is not None and self.dt is not None and dt != self.dt:
            raise UserError(f"NIR: dt = {dt}, but convention {self.name!r} has a time step of {self.dt}")
        return self.dt if dt is None else dt

    def decay(self, tau: float, dt: float, dtype: torch.dtype = torch.float64) -> float:
        """Share of the potential that a step keeps, computed in ``dtype`` where the tool rounds."""
        if self.as_lost:
            return 1 - float(dt * (1 / torch.tensor(tau, dtype=dtype)))
        if not self.exponential:
            return 1 - dt / tau
        step, constant = (torch.tensor(value, dtype=dtype) for value in (dt, tau))
        return float(torch.exp(-step / constant))

    def gain(self, tau: float, r: float, dt: float) -> float:
        """What a step multiplies the current by."""
        if self.as_is:
            return 1.0
        if self.as_lost:
            return dt / tau
        return r * (1 - self.decay(tau, dt)) if self.exponential else r * dt / tau

    def tau(self, decay: float, dt: float) -> float:
        """The time constant with which a step keeps ``decay``."""
        if decay == 1:
            return UNLEAKY * dt
        if self.exponential:
            return EMPTIES * dt if decay == 0 else -dt / math.log(decay)
        return dt / (1 - decay)

    def resistance(self, tau: float, dt: float) -> float:
        """The resistance with which a step adds the current unchanged; 1 where the tool ignores it."""
        if self.as_lost:
            return 1.0
        if not self.exponential:
            return tau / dt
        return tau / dt if tau >= UNLEAKY * dt else 1 / (1 - self.decay(tau, dt))

    def unleaky_gain(self, r: float, dt: float) -> float | None:
        """What a step of an unleaky neuron multiplies the current by; None if tools would disagree.

        Some write ``r = 1`` for a current that is added as it is, others ``r = 1 / dt``.
        """
        if self.as_is or self.as_lost or math.isclose(r, 1) or math.isclose(r * dt, 1, rel_tol=1e-5):
            return 1.0
        return None

    def scale(self, decay: float) -> float:
        """What the tool multiplies the current of a leaky neuron by, so that its threshold has to be, too."""
        return 1 - decay if self.as_lost else 1.0

    def written_threshold(self, threshold: float) -> float:
        """The threshold to write, so that firing above it is firing at ours."""
        return _float32(threshold) if self.fires_at else _neighbor(threshold, -math.inf)

    def read_threshold(self, threshold: float) -> float:
        """The reverse."""
        return threshold if self.fires_at else _neighbor(threshold, math.inf)

    def written_tau(self, tau: float, dt: float) -> float:
        """The time constant to write: where the tool rounds, the float32 that gives the nearest decay."""
        if not (self.exponential or self.as_lost) or not EMPTIES * dt < tau < UNLEAKY * dt:
            return tau
        around = torch.tensor(tau, dtype=torch.float32).view(torch.int32) + torch.arange(-32, 33).int()
        near, wanted = around.view(torch.float32).tolist(), _float32(self.decay(tau, dt))
        return float(min(near, key=lambda t: abs(self.decay(t, dt, torch.float32) - wanted)))


CONVENTIONS = {
    c.name: c
    for c in (
        Convention("euler", None),
        Convention("snntorch", 1e-4, leaky="always", only_hard=True),
        Convention("spikingjelly", None, fires_at=True, only_hard=True, keeps=True),
        Convention("sinabs", 1.0, exponential=True, as_is=True, fires_at=True, leaky="vectors", chain=True),
        Convention("norse", 1e-3, as_lost=True, only_hard=True, chain=True),
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
