"""Spiking neurons. One equation for all of them, with ``V[-1] = v_init``:

    H[t] = decay * V[t-1] + I[t]                        charge
    S[t] = step(H[t] + noise[t] - threshold)            fire (>= fires)
    V[t] = H[t] * (1 - S[t])  |  H[t] - threshold*S[t]  reset (hard | soft)

A batch norm before the neurons and 2x2 average pooling behind them can be handed in: they then cost no pass
over memory of their own.

``u = H - threshold`` is what every defense, attack and diagnosis of this project speaks about.
"""

from spikeguard.kernels.mode import Band
from spikeguard.neurons.layer import IF, LIF, PLIF, Spiking, TapRequest
from spikeguard.neurons.lookup import frozen_norms, recomputation, seed_noise, spiking
from spikeguard.neurons.settings import Neuron, Noise

__all__ = [
    "Band",
    "IF",
    "LIF",
    "PLIF",
    "Neuron",
    "Noise",
    "TapRequest",
    "Spiking",
    "frozen_norms",
    "recomputation",
    "seed_noise",
    "spiking",
]
