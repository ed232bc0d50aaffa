"""Settings of spiking neurons and of their noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from spikeguard.errors import UserError
from spikeguard.surrogates import Surrogate, Triangle

KINDS = ("lif", "if", "plif")


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of standard deviation ``sigma`` (units of the potential), one draw a step shared by
    spike and reset.

    ``site`` 'compare' adds it to the comparison only, 'membrane' to the potential itself, where it lasts;
    'band' to the comparison where the potential lies within ``reach`` of the threshold: there noise lowers a
    neuron's sensitivity, farther out it raises it.
    """

    sigma: float
    site: Literal["compare", "membrane", "band"] = "compare"
    at_eval: bool = False
    reach: float = math.inf

    def __post_init__(self) -> None:
        if not (self.sigma >= 0 and math.isfinite(self.sigma)):
            raise UserError(f"Noise: sigma = {self.sigma} must be a finite number, 0 or more")
        if self.site not in ("compare", "membrane", "band"):
            raise UserError(f"Noise: site = {self.site!r} must be 'compare', 'membrane' or 'band'")
        if not self.reach > 0:
            raise UserError(f"Noise: reach = {self.reach} must be above 0")


@dataclass(frozen=True)
class Neuron:
    """Settings of a spiking neuron. ``decay`` 1 does not leak.

    ``learn_threshold`` makes the threshold a parameter.
    """

    kind: Literal["lif", "if", "plif"] = "lif"
    decay: float = 1.0
    threshold: float = 1.0
    learn_threshold: bool = False
    reset: Literal["hard", "soft"] = "hard"
    detach_reset: bool = False
    v_init: float = 0.0
    surrogate: Surrogate = field(default_factory=Triangle)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"Neuron: kind = {self.kind!r} must be one of {', '.join(KINDS)}")
        if not 0 <= self.decay <= 1:
            raise UserError(f"Neuron: decay = {self.decay} must lie in [0, 1]")
        if self.kind == "if" and self.decay != 1:
            raise UserError(f"Neuron: decay = {self.decay} must be 1 for kind 'if', which does not leak")
        if self.kind == "plif" and not 0 < self.decay < 1:
            raise UserError(
                f"Neuron: decay = {self.decay} must lie inside (0, 1) for kind 'plif', whose decay is a "
                "sigmoid"
            )
        if not (self.threshold > 0 and math.isfinite(self.threshold)):
            raise UserError(f"Neuron: threshold = {self.threshold} must be a finite number above 0")
        if not math.isfinite(self.v_init):
            raise UserError(f"Neuron: v_init = {self.v_init} must be finite")
        if self.reset not in ("hard", "soft"):
            raise UserError(f"Neuron: reset = {self.reset!r} must be 'hard' or 'soft'")
        if not isinstance(self.surrogate, Surrogate):
            raise UserError(
                f"Neuron: surrogate = {self.surrogate!r} must be a Surrogate, such as Triangle(width=1.0)"
            )
