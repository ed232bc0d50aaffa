"""How many potentials lie near the threshold, and a control for what that number means.

The share with ``|u| < delta`` depends on scale: a larger batch-norm gain lowers it and protects nothing. So
the share is also given relative to the layer's own standard deviation, and ``gain_scaled`` makes the network
that reaches the same share by scale alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from spikeguard.adapters.tap import tap
from spikeguard.arguments import checked
from spikeguard.diagnosis.layers import histogram as counts_of
from spikeguard.errors import UserError
from spikeguard.models import logits_of
from spikeguard.runtime.untouched import leaves_untouched

Network = TypeVar("Network", bound=nn.Module)
EDGES = torch.linspace(-3.0, 3.0, 121, dtype=torch.float32, device="cpu")


@dataclass(frozen=True)
class Neighbors:
    """Potentials near the threshold, by layer name; u is the membrane potential minus the threshold.

    ``absolute``: share with ``|u| < delta``; ``relative``: share with ``|u| < delta std(u)``; ``spread``:
    std(u); ``histogram``: counts of u between ``EDGES``.
    """

    absolute: dict[str, float]
    relative: dict[str, float]
    spread: dict[str, float]
    histogram: dict[str, list[int]]

    def __repr__(self) -> str:
        shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.absolute.items())
        return f"Neighbors({shares})"

    @property
    def mean(self) -> float:
        """Mean over layers of the absolute share."""
        return sum(self.absolute.values()) / len(self.absolute)


@checked
@leaves_untouched
def neighbors(net: nn.Module, x: Tensor, delta: float = 0.2, batch_size: int = 100) -> Neighbors:
    """Measure how many potentials lie near the threshold, over samples, timesteps and neurons.

    ``x``: images ``[N, C, H, W]`` in [0, 1]. The network stays in the mode it is in. UserError unless
    ``delta`` is above 0.

    >>> from spikeguard.diagnosis.neighbors import neighbors
    >>> found = neighbors(net, x, delta=0.2)
    >>> len(found.absolute) == len(found.relative), 0 <= found.mean <= 1
    (True, True)
    """
    if not delta > 0:
        raise UserError(f"neighbors: delta = {delta} must be above 0")
    potentials: dict[str, list[Tensor]] = {}
    with torch.no_grad(), tap(net) as opened:
        for part in x.split(batch_size):
            opened.clear()
            logits_of(net, part)
            for name, u in opened.potentials.items():
                potentials.setdefault(name, []).append(u.flatten(2).cpu())
    absolute, relative, spread, histogram = {}, {}, {}, {}
    for name, held in potentials.items():
        u = torch.cat([h.flatten() for h in held])
        size, std = u.abs(), float(u.std())
        absolute[name] = float((size < delta).float().mean())
        relative[name] = float((size < delta * std).float().mean())
        spread[name] = std
        histogram[name] = list(counts_of(u))
    return Neighbors(absolute, relative, spread, histogram)


@checked
def gain_scaled(
    net: Network, x: Tensor, share: float, delta: float = 0.2, rounds: int = 12
) -> tuple[Network, float]:
    """A copy of ``net`` with all batch-norm gains times one factor, so that its mean share is ``share``.

    Returns the copy and the factor: the best one that a bisection in [1/8, 8] tries. The share jumps where
    many pixels are equal.
    """
    low, high, tried = 0.125, 8.0, []
    for _ in range(rounds):
        middle = (low * high) ** 0.5
        reached = neighbors(_scaled(net, middle), x, delta).mean
        tried.append((abs(reached - share), middle))
        low, high = (middle, high) if reached > share else (low, middle)
    factor = min(tried)[1]
    return _scaled(net, factor), factor


def _scaled(net: Network, factor: float) -> Network:
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(factor)
    return twin
