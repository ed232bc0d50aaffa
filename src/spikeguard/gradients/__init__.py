"""Input-gradient estimators."""

from spikeguard.gradients.assg import assg
from spikeguard.gradients.estimators import Estimator, Model, Own, eot, swap
from spikeguard.gradients.rate import bptr, hart, rga

__all__ = ["Estimator", "Model", "Own", "assg", "bptr", "eot", "hart", "rga", "swap"]
