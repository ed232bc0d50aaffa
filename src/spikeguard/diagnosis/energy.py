"""Operations that a pass takes, and an estimate of their energy.

A spike times a weight is one accumulate (0.9 pJ); a weight times any other input that is not 0 is one
multiply and accumulate (4.6 pJ): 45 nm, 32-bit floats, Horowitz, ISSCC 2014. Inputs of a layer count as
spikes where all of them are 0 or 1; averages of 2x2 spikes count as the spikes that they sum, whose weight is
a quarter. Memory, leak and thresholds are left out, as is common, so that numbers
can be compared with published ones; a chip spends most of its energy elsewhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from spikeguard.models import logits_of
from spikeguard.records.diagnosis import Energy

ACCUMULATE, MULTIPLY = 0.9, 4.6
"""Picojoules of an operation."""
Weighted = nn.Linear | nn.Conv1d | nn.Conv2d
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


class _Counts:
    """Operations of all calls so far; ``dense``: by layer, multiplies of a pass without spikes."""

    def __init__(self) -> None:
        self.accumulates, self.multiplies = 0.0, 0.0
        self.dense: dict[nn.Module, float] = {}

    def add(self, module: Weighted, x: Tensor) -> None:
        """What a call of a layer takes."""
        spikes = _spikes(x)
        if spikes is None:
            self.multiplies += pairs(module, (x != 0).to(torch.float32))
        else:
            self.accumulates += pairs(module, spikes)
        one = x.flatten(0, -2)[:1] if isinstance(module, nn.Linear) else x[:1]
        self.dense[module] = pairs(module, torch.ones_like(one, dtype=torch.float32))


def energy(net: nn.Module, x: Tensor, batch_size: int) -> Energy:
    """Operations an image, mean over images ``[N, ...]``; layers counted: linear and convolutions.

    >>> from spikeguard.diagnosis.energy import energy
    >>> found = energy(torch.nn.Linear(4, 3), torch.full((2, 4), 0.5), batch_size=2)
    >>> found.multiplies, found.accumulates, found.picojoules
    (12.0, 0.0, 55.2)
    """
    counts = _Counts()

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, WEIGHTED)
        counts.add(module, inputs[0])

    hooks: list[RemovableHandle] = []
    try:
        for module in net.modules():
            if isinstance(module, WEIGHTED):
                hooks.append(module.register_forward_pre_hook(count))
        with torch.no_grad():
            for part in x.split(batch_size):
                logits_of(net, part)
    finally:
        for hook in hooks:
            hook.remove()
    adds, multiplies = counts.accumulates / len(x), counts.multiplies / len(x)
    spent = round(ACCUMULATE * adds + MULTIPLY * multiplies, 6)
    return Energy(adds, multiplies, sum(counts.dense.values()), spent)


def _spikes(x: Tensor) -> Tensor | None:
    """How many spikes each input stands for: 0 or 1, or up to 4 of a pool; None if it is none of these."""
    x = x.to(torch.float32)
    if bool(((x == 0) | (x == 1)).all()):
        return x
    pooled = 4 * x
    return pooled if bool(((pooled == pooled.round()) & (pooled >= 0) & (pooled <= 4)).all()) else None


def pairs(module: Weighted, used: Tensor) -> float:
    """Pairs of an input and a weight that it meets, each input counted ``used`` times.

    >>> from spikeguard.diagnosis.energy import pairs
    >>> pairs(torch.nn.Linear(3, 2), torch.tensor([[1.0, 0.0, 1.0]]))
    4.0
    """
    if isinstance(module, nn.Linear):
        return float(used.sum()) * module.out_features
    ones = torch.ones_like(module.weight[:: max(1, module.out_channels // module.groups)], dtype=used.dtype)
    convolve = F.conv2d if isinstance(module, nn.Conv2d) else F.conv1d
    settings = (module.stride, module.padding, module.dilation, module.groups)
    met = convolve(used, ones, None, *settings)  # type: ignore[arg-type]
    return float(met.double().sum()) * (module.out_channels // module.groups)
