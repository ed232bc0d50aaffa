"""Defenses by name.

A new one is a class in a file, and a line in ``DEFENSES``: recipes, flags, documents and the study read it.
"""

from spikeguard.defenses.adversarial import AT, MART, TRADES, TemporalEnsemble
from spikeguard.defenses.awp import AWP
from spikeguard.defenses.base import Defense, Hooks, Step, StudyRow, View, compose
from spikeguard.defenses.conversion import ANNTwin, Conversion
from spikeguard.defenses.crafting import CRAFTING_GRADIENTS, Adversary
from spikeguard.defenses.distillation import Distillation
from spikeguard.defenses.disturbance import MPPD, FirstLayerGuard, ShiftGuard
from spikeguard.defenses.fitted import FittedSurrogate
from spikeguard.defenses.gradient import SR
from spikeguard.defenses.inputs import FEEL, InputNoise, InputQuantization
from spikeguard.defenses.kept_weights import EMA, EarlyStopping
from spikeguard.defenses.membrane import MPDSGR
from spikeguard.defenses.neural import DLIF, HoSNN, RandHet, StoG
from spikeguard.defenses.one_step import NFGSM, PGI
from spikeguard.defenses.overfitting import OverfittingStop
from spikeguard.defenses.parameters import DSD, RAT
from spikeguard.defenses.tgo import TGO
from spikeguard.registry import Registry

DEFENSES: Registry[type[Defense]] = Registry(
    "defense",
    {
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
        "nfgsm": NFGSM,
        "pgi": PGI,
        "awp": AWP,
        "overfitting_stop": OverfittingStop,
    },
)
"""Every defense by name; ``sg.register`` adds to it."""
_INTERFACE: dict[str, object] = {
    "CRAFTING_GRADIENTS": CRAFTING_GRADIENTS,
    "DEFENSES": DEFENSES,
    "Adversary": Adversary,
    "Defense": Defense,
    "Hooks": Hooks,
    "Step": Step,
    "StudyRow": StudyRow,
    "View": View,
    "compose": compose,
}
__all__ = [*_INTERFACE, *(kind.__name__ for kind in DEFENSES.own.values())]


def __getattr__(name: str) -> type[Defense]:
    """Classes that were registered later, by their names."""
    for kind in () if name.startswith("_") else DEFENSES.values():
        if kind.__name__ == name:
            return kind
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(kind.__name__ for kind in DEFENSES.values())})
