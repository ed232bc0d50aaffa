"""Where attacks get input gradients from: one estimator a class, to pass as ``gradient=`` of an attack."""

from spikeguard.gradients.activity import Activity
from spikeguard.gradients.assg import ASSG
from spikeguard.gradients.base import EOT, Estimator, Own
from spikeguard.gradients.bpda import BPDA
from spikeguard.gradients.ensemble import ENSEMBLE
from spikeguard.gradients.learned_blend import LearnedBlend
from spikeguard.gradients.pdsg import PDSG
from spikeguard.gradients.per_step import PerStep
from spikeguard.gradients.potentials import read_potentials
from spikeguard.gradients.random_surrogate import RandomSurrogate
from spikeguard.gradients.relaxed import MeanField, NoiseFree, ReLUTwin, SoftSpikes
from spikeguard.gradients.sequence import BPTR, HART, RGA
from spikeguard.gradients.surrogate import SwapSurrogate
from spikeguard.gradients.threshold_first import ThresholdFirst
from spikeguard.gradients.transfer import Transfer
from spikeguard.gradients.zeroth_order import ZerothOrder
from spikeguard.models import Model

__all__ = [
    "Estimator",
    "Model",
    "Own",
    "SwapSurrogate",
    "ASSG",
    "PDSG",
    "RandomSurrogate",
    "LearnedBlend",
    "Activity",
    "EOT",
    "BPTR",
    "RGA",
    "HART",
    "PerStep",
    "SoftSpikes",
    "MeanField",
    "ReLUTwin",
    "NoiseFree",
    "ThresholdFirst",
    "BPDA",
    "Transfer",
    "ZerothOrder",
    "ENSEMBLE",
    "read_potentials",
]
