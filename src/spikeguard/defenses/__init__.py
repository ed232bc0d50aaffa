"""Defenses by name.

A new one is a file (or a class in the file of its kind), a line here, and what CONTRIBUTING.md lists beside
it.
"""

from spikeguard.defenses.adversarial import AT, MART, TRADES, TemporalEnsemble
from spikeguard.defenses.base import Defense, Hooks, Step, View, compose
from spikeguard.defenses.conversion import ANNTwin, Conversion
from spikeguard.defenses.crafting import CRAFTING_GRADIENTS, Adversary
from spikeguard.defenses.distillation import Distillation
from spikeguard.defenses.disturbance import MPPD, FirstLayerGuard, ShiftGuard
from spikeguard.defenses.fitted import FittedSurrogate
from spikeguard.defenses.gradient import SR
from spikeguard.defenses.inputs import FEEL, InputNoise, InputQuantization
from spikeguard.defenses.membrane import MPDSGR
from spikeguard.defenses.neural import DLIF, HoSNN, RandHet, StoG
from spikeguard.defenses.parameters import DSD, EMA, RAT, EarlyStopping
from spikeguard.defenses.tgo import TGO

DEFENSES: dict[str, type[Defense]] = {
    "tgo": TGO,
    "at": AT,
    "trades": TRADES,
    "mart": MART,
    "rat": RAT,
    "temporal_ensemble": TemporalEnsemble,
    "distillation": Distillation,
    "ema": EMA,
    "early_stopping": EarlyStopping,
    "sr": SR,
    "stog": StoG,
    "dlif": DLIF,
    "mppd": MPPD,
    "mpd_sgr": MPDSGR,
    "feel": FEEL,
    "hosnn": HoSNN,
    "input_noise": InputNoise,
    "input_quantization": InputQuantization,
    "randhet": RandHet,
    "dsd": DSD,
    "conversion": Conversion,
    "ann_twin": ANNTwin,
    "fitted_surrogate": FittedSurrogate,
    "shift_guard": ShiftGuard,
    "first_layer_guard": FirstLayerGuard,
}

__all__ = [
    "ANNTwin",
    "AT",
    "CRAFTING_GRADIENTS",
    "DEFENSES",
    "DLIF",
    "DSD",
    "EMA",
    "FEEL",
    "MART",
    "MPDSGR",
    "MPPD",
    "RAT",
    "SR",
    "TGO",
    "TRADES",
    "Adversary",
    "Conversion",
    "Defense",
    "Distillation",
    "EarlyStopping",
    "FirstLayerGuard",
    "FittedSurrogate",
    "HoSNN",
    "Hooks",
    "InputNoise",
    "InputQuantization",
    "RandHet",
    "ShiftGuard",
    "Step",
    "StoG",
    "TemporalEnsemble",
    "View",
    "compose",
]
