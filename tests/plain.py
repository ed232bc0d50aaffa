"""Plain loops and closed forms that share no code with what they check."""

import math

import torch

import spikeguard as sg


def softmax(z):
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return [v / sum(e) for v in e]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def logits(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loop(current, decay=0.5, gain=None, theta0=1.0, moving=None, noise=None):
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


def fired(layer, current):
    """Spikes and u of a layer for currents ``[T, M]``."""
    with sg.tap(layer, potentials=True) as t:
        spikes = layer(current[:, None])
    return spikes[:, 0], t.potentials[""][:, 0]


def without_spikes(net, x):
    """The same layers with ReLU; batch norm as it stands."""
    at = (x - net.mean) / net.std
    for stage in net.body.stages:
        at = torch.nn.functional.avg_pool2d(torch.relu(stage.norm(stage.conv[0](at))), 2)
    return net.head(at.flatten(1))
