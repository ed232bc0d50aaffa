"""From images ``[N, ...]`` in [0, 1] to what a network sees over time, ``[T, N, ...]``, with a gradient.

An attack moves the image, so every code here is differentiable: where the code jumps, the backward pass takes
the slope of what it rounds (straight through, Bengio et al. 2013).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikeguard.random.streams import StochasticModule


class Direct(nn.Module):
    """The image itself in every step, as an input current; also called repeat or constant coding."""

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        """``[N, ...] -> [T, N, ...]``."""
        return x.expand(timesteps, *x.shape)


class Poisson(StochasticModule):
    """Rate coding: in each step a pixel spikes with its value as probability.

    The draws follow from the seed of the measurement, like all noise, so that gradients can be averaged over
    them (EOT) and a result repeats.
    """

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        """``[N, ...] -> [T, N, ...]`` of 0 and 1; the gradient is that of the rate."""
        rates = x.expand(timesteps, *x.shape)
        spikes = (self.uniform(rates) < rates).to(x.dtype)
        return spikes + (rates - rates.detach())


class Latency(nn.Module):
    """One spike a pixel, the earlier the brighter: 1 spikes in the first step, 0 in the last."""

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        """``[N, ...] -> [T, N, ...]`` of 0 and 1; the gradient is that of interpolating between steps."""
        steps = torch.arange(timesteps, device=x.device, dtype=x.dtype).view(-1, *[1] * x.dim())
        when = (1 - x) * (timesteps - 1)
        near = (1 - (steps - when).abs()).clamp(min=0)
        return (steps == when.round()).to(x.dtype) + (near - near.detach())


class Frames(nn.Module):
    """Samples that have a time of their own, ``[N, T, ...]``, such as frames of events."""

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        """``[N, T, ...] -> [T, N, ...]``."""
        return x.transpose(0, 1)


ENCODERS: dict[str, type[nn.Module]] = {
    "direct": Direct,
    "repeat": Direct,
    "poisson": Poisson,
    "latency": Latency,
    "frames": Frames,
}
"""By the name that ``wrap`` takes. Direct coding is called repeat, too."""
