"""Settings of spiking neurons and of their noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from spikeguard.arguments import checked_fields
from spikeguard.errors import UserError
from spikeguard.surrogates import Surrogate, Triangle


@dataclass(frozen=True)
@checked_fields
class Noise:
    """Gaussian noise of standard deviation ``sigma``, in units of the potential.

    Each step has one draw, which spike and reset share.
    ``site`` 'compare' adds it to the comparison with the threshold only, 'membrane' to the potential, where
    it stays. 'band' adds it to the comparison where the potential is within ``noise_band`` of the threshold:
    there noise lowers a neuron's sensitivity, farther away it raises it. ``at_eval`` draws it in evaluation,
    too. Raises UserError on a negative ``sigma`` or an unknown ``site``.

    >>> layer = sg.LIF(noise=sg.Noise(0.1))
    >>> spikes = layer(torch.full((4, 1, 1000), 1.0))  # exactly at the threshold
    >>> bool(0.4 < spikes[0].mean() < 0.6)
    True
    """

    sigma: float
    site: Literal["compare", "membrane", "band"] = "compare"
    at_eval: bool = False
    noise_band: float = math.inf

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise UserError(f"Noise: sigma = {self.sigma} must be a finite number, 0 or more")
        if not self.noise_band > 0:
            raise UserError(f"Noise: noise_band = {self.noise_band} must be above 0")


@dataclass(frozen=True)
@checked_fields
class Neuron:
    """Settings of a spiking neuron: charge, fire, reset (see ``spikeguard.neurons``).

    ``kind`` 'plif' learns its decay, 'if' does not leak. ``decay`` in [0, 1]: 1 does not leak.
    ``learn_threshold`` makes the threshold a parameter. ``reset`` 'hard' sets the potential to 0, 'soft'
    subtracts the threshold; ``detach_reset`` takes the reset out of the backward pass. ``v_init`` is the
    potential before the first step. Raises UserError on a value that is not allowed.

    >>> neuron = sg.Neuron(decay=0.5, reset="soft", surrogate=sg.surrogates.Atan(2.0))
    >>> sg.build("small", classes=10, in_shape=(1, 8, 8), neuron=neuron)(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    kind: Literal["lif", "if", "plif"] = "lif"
    """Leaky (lif), not leaky (if), or leaky with a decay that is learned (plif)."""
    decay: float = 1.0
    """Share of the potential that a time step keeps; 1 does not leak."""
    threshold: float = 1.0
    """A neuron fires where its potential reaches it."""
    learn_threshold: bool = False
    """Make the threshold a parameter."""
    reset: Literal["hard", "soft"] = "hard"
    """After a spike the potential becomes 0 (hard) or falls by the threshold (soft)."""
    detach_reset: bool = False
    """Leave the reset out of the backward pass."""
    v_init: float = 0.0
    """Potential before the first time step."""
    surrogate: Surrogate = field(default_factory=Triangle)
    """Stand-in for the derivative of a spike in the backward pass."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise UserError(f"Neuron: decay = {self.decay} must lie in [0, 1]")
        if self.kind == "if" and self.decay != 1:
            raise UserError(f"Neuron: decay = {self.decay} must be 1 for kind 'if', which does not leak")
        if self.kind == "plif" and not 0 < self.decay < 1:
            raise UserError(
                f"Neuron: decay = {self.decay} must lie inside (0, 1) for kind 'plif', whose decay is a "
                "sigmoid"
            )
        if not self.threshold > 0:
            raise UserError(f"Neuron: threshold = {self.threshold} must be a finite number above 0")
