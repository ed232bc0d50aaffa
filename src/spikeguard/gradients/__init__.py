"""Input-gradient estimators."""

from spikeguard.gradients.assg import assg
from spikeguard.gradients.borrowed import each_step, mean_field, relu_twin, soft, still, through
from spikeguard.gradients.estimators import Estimator, Model, Own, eot
from spikeguard.gradients.pulled import pulled
from spikeguard.gradients.rate import bptr, hart, rga
from spikeguard.gradients.swap import swap
from spikeguard.gradients.unlocked import unlocked
from spikeguard.gradients.varied import ENSEMBLE, drawn, pdsg
from spikeguard.gradients.zeroth import zeroth

__all__ = [
    "ENSEMBLE",
    "Estimator",
    "Model",
    "Own",
    "assg",
    "bptr",
    "drawn",
    "each_step",
    "eot",
    "hart",
    "mean_field",
    "pdsg",
    "pulled",
    "relu_twin",
    "rga",
    "soft",
    "still",
    "swap",
    "through",
    "unlocked",
    "zeroth",
]
