"""Input-gradient estimators."""

from spikeguard.gradients.assg import assg
from spikeguard.gradients.estimators import Estimator, Model, Own, eot, swap

__all__ = ["Estimator", "Model", "Own", "assg", "eot", "swap"]
