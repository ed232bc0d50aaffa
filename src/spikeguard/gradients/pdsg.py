"""A surrogate that follows the potentials of each channel (PDSG)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeguard.gradients.base import Opened
from spikeguard.gradients.surrogate import SwapOpened
from spikeguard.models import Model
from spikeguard.surrogates import Stretched


class Shifted(Stretched):
    """A normal density of mean 1/2 and deviation 1, in units of one over the sharpness.

    The sharpness is one over the deviation of the potentials up to each time step.
    """

    native = "a * (exp(-0.5f * (a * u - 0.5f) * (a * u - 0.5f)) * 0.398942280f)"

    def shape(self, z: Tensor) -> Tensor:
        return torch.exp(-0.5 * (z - 0.5) ** 2) * 0.39894228

    def primitive(self, z: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.erf((z - 0.5) / 2**0.5))

    def observe(self, u: Tensor) -> Tensor:
        """One over the deviation per channel of ``u[0..t]``, over time, batch and space; 1 where it is 0."""
        spatial = u.dim() > 3
        at = [d for d in range(1, u.dim()) if not (spatial and d == 2)]
        count = (
            u[0].numel()
            / (u.shape[2] if spatial else 1)
            * torch.arange(1, len(u) + 1, device=u.device, dtype=u.dtype)
        )
        count = count.view(-1, *[1] * (u.dim() - 1))
        mean = u.sum(at, keepdim=True).cumsum(0) / count
        spread = (u.square().sum(at, keepdim=True).cumsum(0) / count - mean.square()).clamp(min=0.0).sqrt()
        return torch.empty_like(u).copy_(1.0 / torch.where(spread > 0, spread, torch.ones_like(spread)))


@dataclass(frozen=True)
class PDSG:
    """Potential-dependent surrogate gradient. Lun et al., CVPR 2025.

    A normal density, half a deviation above the threshold and as wide as the channel's own potentials. The
    deviation is taken over the batch: which points are found depends on the other samples (whether they
    mislead does not).

    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=2, restarts=1, gradient=sg.gradients.PDSG())
    >>> found.x.shape == x.shape
    True
    """

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        yield SwapOpened(model, choose=lambda name: Shifted())
