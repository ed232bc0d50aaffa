"""Settings that a kernel is compiled for, and what a kernel returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from spikeguard.arguments import checked_fields
from spikeguard.errors import UserError
from spikeguard.surrogates import Surrogate


@dataclass(frozen=True)
@checked_fields
class Band:
    """The band around the threshold in which potentials are penalized: ``mean max(0, delta - |u|)``.

    >>> layer, current = sg.LIF(decay=0.0), torch.tensor([[[0.8, 1.1, 2.0]]])
    >>> with sg.tap(layer, band=sg.neurons.Band(0.5)) as tapped:
    ...     spikes = layer(current)
    >>> round(float(tapped.penalties[""]), 4)
    0.2333
    """

    delta: float
    side: Literal["both", "below"] = "both"

    def __post_init__(self) -> None:
        if not self.delta >= 0:
            raise UserError(f"Band: delta = {self.delta} must be 0 or more")


@dataclass(frozen=True)
class Mode:
    """Everything about a neuron that is constant while a kernel runs."""

    timesteps: int
    surrogate: Surrogate
    reset: Literal["hard", "soft"] = "hard"
    detach_reset: bool = False
    v_init: float = 0.0
    site: Literal["compare", "membrane", "band"] = "compare"
    smooth: bool = False
    band: Band | None = None
    noise_band: float = math.inf

    def comparator_input(self, u: Tensor, noise: Tensor | None) -> Tensor:
        """The input of the step function: ``u``, plus noise where the site adds it there."""
        if noise is None or self.site == "membrane":
            return u
        return (
            u + noise
            if self.site == "compare"
            else u + torch.where(u.detach().abs() < self.noise_band, noise, 0.0)
        )


@dataclass(frozen=True)
class Norm:
    """Batch norm before the neurons: parameters and running averages ``[C]``.

    ``batch``: use the statistics of the batch, and move the running averages.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float
    momentum: float
    batch: bool

    def remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running averages towards the statistics of ``count`` values a channel."""
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_((variance * (count / max(count - 1, 1))).to(self.running_var), self.momentum)


class NoiseKeys(NamedTuple):
    """Noise that a kernel draws: its standard deviation and keys ``[N, 1 + (T + 1) // 2]``."""

    sigma: float
    keys: Tensor


class LayerOutput(NamedTuple):
    """Spikes and potentials ``[T, N, ...]`` and the mean hinge (a scalar); the last two only if requested."""

    spikes: Tensor
    u: Tensor | None
    penalty: Tensor | None


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of potentials: never half precision."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def widen(x: Tensor) -> Tensor:
    """A tensor in the dtype of potentials."""
    return x.to(wide(x.dtype))
