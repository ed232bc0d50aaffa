"""Input-gradient estimators."""

from spikeguard.gradients.assg import ASSG
from spikeguard.gradients.base import EOT, Estimator, Own
from spikeguard.gradients.bpda import BPDA
from spikeguard.gradients.pool import ENSEMBLE, PDSG, RandomSurrogate
from spikeguard.gradients.relaxed import MeanField, NoiseFree, PerStep, ReLUTwin, SoftSpikes
from spikeguard.gradients.sequence import BPTR, HART, RGA
from spikeguard.gradients.surrogate import SwapSurrogate
from spikeguard.gradients.threshold_first import ThresholdFirst
from spikeguard.gradients.transfer import Transfer
from spikeguard.gradients.zeroth_order import ZerothOrder
from spikeguard.models import Model

__all__ = [
    "ENSEMBLE",
    "Estimator",
    "Model",
    "Own",
    "ASSG",
    "BPTR",
    "RandomSurrogate",
    "PerStep",
    "EOT",
    "HART",
    "MeanField",
    "PDSG",
    "ThresholdFirst",
    "ReLUTwin",
    "RGA",
    "SoftSpikes",
    "NoiseFree",
    "SwapSurrogate",
    "Transfer",
    "BPDA",
    "ZerothOrder",
]
