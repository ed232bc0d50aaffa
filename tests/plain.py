"""Plain loops and closed forms that share no code with what they check."""

import math
from collections.abc import Callable, Sequence

import torch
from narrow import stages_of
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.networks.classifier import Classifier

Rows = list[list[float]]  # [T][M]


def softmax(z: Sequence[float]) -> list[float]:
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return [v / sum(e) for v in e]


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loop(
    current: Rows,
    decay: float | Rows = 0.5,
    gain: Rows | None = None,
    theta0: float = 1.0,
    moving: tuple[list[float], Rows] | None = None,
    noise: Callable[[int, int, float], float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Hard reset, one neuron after the other: spikes and u as nested lists ``[T][M]``."""
    spikes, us = [], []
    steps, count = len(current), len(current[0])
    v, theta = [0.0] * count, [theta0] * count
    for t in range(steps):
        row, urow = [], []
        for m in range(count):
            d = decay[t][m] if isinstance(decay, list) else decay
            h = d * v[m] + (gain[t][m] if gain else 1.0) * current[t][m]
            if moving:
                theta[m] += moving[0][m] * (h - moving[1][t][m])
            u = h - theta[m]
            s = float(u + (noise(t, m, u) if noise else 0.0) >= 0)
            v[m] = h * (1 - s)
            row.append(s)
            urow.append(u)
        spikes.append(row)
        us.append(urow)
    return torch.tensor(spikes), torch.tensor(us)


def fired(layer: nn.Module, current: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and u of a layer for currents ``[T, M]``."""
    with sg.tap(layer, potentials=True) as t:
        spikes = layer(current[:, None])
    return spikes[:, 0], t.potentials[""][:, 0]


def without_spikes(net: Classifier, x: Tensor) -> Tensor:
    """The same layers with ReLU; batch norm as it stands."""
    at = (x - net.mean) / net.std
    for stage in stages_of(net):
        at = torch.nn.functional.avg_pool2d(torch.relu(stage.norm(stage.conv[0](at))), 2)
    logits: Tensor = net.head(at.flatten(1))
    return logits
