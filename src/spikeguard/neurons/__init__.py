"""Spiking neurons. One equation for all of them, with ``V[-1] = v_init``:

    H[t] = decay * V[t-1] + I[t]                        charge
    S[t] = step(H[t] + noise[t] - threshold)            fire (>= fires)
    V[t] = H[t] * (1 - S[t])  |  H[t] - threshold*S[t]  reset (hard | soft)

A layer can have a batch norm before its neurons and 2x2 average pooling after them: they cost no pass over
memory of their own.

``u = H - threshold``, the distance to the threshold, is what defenses, attacks and diagnoses work with.
"""

from spikeguard.kernels.mode import Band
from spikeguard.kernels.operator import decompositions
from spikeguard.neurons.layer import IF, LIF, PLIF, Spiking
from spikeguard.neurons.lookup import frozen_norms, recomputation, seed_noise, spiking
from spikeguard.neurons.request import TapRequest
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
    "decompositions",
    "frozen_norms",
    "recomputation",
    "seed_noise",
    "spiking",
]
