"""spikeguard: train spiking neural networks that stay right under attack, and measure how right they stay.

    import spikeguard as sg
    net = sg.load("runs/tgo")
    got = sg.pgd(net, x, y, sg.Linf(8 / 255))

Importing spikeguard does not import torch; names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikeguard.attacks.apgd import apgd as apgd
    from spikeguard.attacks.ascent import Attacked as Attacked
    from spikeguard.attacks.cw import cw as cw
    from spikeguard.attacks.fab import fab as fab
    from spikeguard.attacks.hardlabel import rays as rays
    from spikeguard.attacks.pgd import bim as bim
    from spikeguard.attacks.pgd import fgsm as fgsm
    from spikeguard.attacks.pgd import pgd as pgd
    from spikeguard.attacks.pgd import rfgsm as rfgsm
    from spikeguard.attacks.randomly import noise as noise
    from spikeguard.attacks.randomly import random_search as random_search
    from spikeguard.attacks.sapgd import sapgd as sapgd
    from spikeguard.attacks.square import square as square
    from spikeguard.attacks.targeted import apgd_targeted as apgd_targeted
    from spikeguard.attacks.targeted import targeted as targeted
    from spikeguard.auditing.audit import Audit as Audit
    from spikeguard.auditing.audit import audit as audit
    from spikeguard.auditing.flags import Flag as Flag
    from spikeguard.auditing.suite import Member as Member
    from spikeguard.data.sources import load_data as load_data
    from spikeguard.defenses import AT as AT
    from spikeguard.defenses import DLIF as DLIF
    from spikeguard.defenses import DSD as DSD
    from spikeguard.defenses import EMA as EMA
    from spikeguard.defenses import FEEL as FEEL
    from spikeguard.defenses import MART as MART
    from spikeguard.defenses import MPDSGR as MPDSGR
    from spikeguard.defenses import MPPD as MPPD
    from spikeguard.defenses import RAT as RAT
    from spikeguard.defenses import SR as SR
    from spikeguard.defenses import TGO as TGO
    from spikeguard.defenses import TRADES as TRADES
    from spikeguard.defenses import ANNTwin as ANNTwin
    from spikeguard.defenses import Conversion as Conversion
    from spikeguard.defenses import Defense as Defense
    from spikeguard.defenses import Distillation as Distillation
    from spikeguard.defenses import EarlyStopping as EarlyStopping
    from spikeguard.defenses import FirstLayerGuard as FirstLayerGuard
    from spikeguard.defenses import FittedSurrogate as FittedSurrogate
    from spikeguard.defenses import HoSNN as HoSNN
    from spikeguard.defenses import InputNoise as InputNoise
    from spikeguard.defenses import InputQuantisation as InputQuantisation
    from spikeguard.defenses import RandHet as RandHet
    from spikeguard.defenses import ShiftGuard as ShiftGuard
    from spikeguard.defenses import StoG as StoG
    from spikeguard.defenses import TemporalEnsemble as TemporalEnsemble
    from spikeguard.defenses import compose as compose
    from spikeguard.errors import AttackError as AttackError
    from spikeguard.errors import UserError as UserError
    from spikeguard.gradients.assg import assg as assg
    from spikeguard.gradients.borrowed import each_step as each_step
    from spikeguard.gradients.borrowed import mean_field as mean_field
    from spikeguard.gradients.borrowed import relu_twin as relu_twin
    from spikeguard.gradients.borrowed import soft as soft
    from spikeguard.gradients.borrowed import still as still
    from spikeguard.gradients.borrowed import through as through
    from spikeguard.gradients.estimators import eot as eot
    from spikeguard.gradients.pulled import pulled as pulled
    from spikeguard.gradients.rate import bptr as bptr
    from spikeguard.gradients.rate import hart as hart
    from spikeguard.gradients.rate import rga as rga
    from spikeguard.gradients.swap import swap as swap
    from spikeguard.gradients.unlocked import unlocked as unlocked
    from spikeguard.gradients.varied import drawn as drawn
    from spikeguard.gradients.varied import pdsg as pdsg
    from spikeguard.gradients.zeroth import zeroth as zeroth
    from spikeguard.kernels.mode import Band as Band
    from spikeguard.networks import build as build
    from spikeguard.neurons import IF as IF
    from spikeguard.neurons import LIF as LIF
    from spikeguard.neurons import PLIF as PLIF
    from spikeguard.neurons import Neuron as Neuron
    from spikeguard.neurons import Noise as Noise
    from spikeguard.surrogates import Atan as Atan
    from spikeguard.surrogates import Exponential as Exponential
    from spikeguard.surrogates import Gaussian as Gaussian
    from spikeguard.surrogates import Rectangle as Rectangle
    from spikeguard.surrogates import Sigmoid as Sigmoid
    from spikeguard.surrogates import StraightThrough as StraightThrough
    from spikeguard.surrogates import Triangle as Triangle
    from spikeguard.taps import tap as tap
    from spikeguard.threat import L1 as L1
    from spikeguard.threat import L2 as L2
    from spikeguard.threat import Linf as Linf
    from spikeguard.training.load import load as load
    from spikeguard.training.loop import Run as Run
    from spikeguard.training.loop import train as train
    from spikeguard.training.recipe import Recipe as Recipe

_HOMES = {
    "attacks": (
        "Attacked",
        "apgd",
        "apgd_targeted",
        "bim",
        "cw",
        "fab",
        "fgsm",
        "noise",
        "pgd",
        "random_search",
        "rays",
        "rfgsm",
        "sapgd",
        "square",
        "targeted",
    ),
    "auditing.audit": ("Audit", "audit"),
    "auditing.flags": ("Flag",),
    "auditing.suite": ("Member",),
    "data.sources": ("load_data",),
    "defenses": (
        "AT",
        "ANNTwin",
        "Conversion",
        "DLIF",
        "DSD",
        "Defense",
        "Distillation",
        "EMA",
        "EarlyStopping",
        "FEEL",
        "FirstLayerGuard",
        "FittedSurrogate",
        "HoSNN",
        "InputNoise",
        "InputQuantisation",
        "MART",
        "MPDSGR",
        "MPPD",
        "RAT",
        "RandHet",
        "SR",
        "ShiftGuard",
        "StoG",
        "TGO",
        "TRADES",
        "TemporalEnsemble",
        "compose",
    ),
    "errors": ("AttackError", "UserError"),
    "gradients": (
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
    ),
    "kernels.mode": ("Band",),
    "networks": ("build",),
    "neurons": ("IF", "LIF", "PLIF", "Neuron", "Noise"),
    "surrogates": ("Atan", "Exponential", "Gaussian", "Rectangle", "Sigmoid", "StraightThrough", "Triangle"),
    "taps": ("tap",),
    "threat": ("L1", "L2", "Linf"),
    "training.load": ("load",),
    "training.loop": ("Run", "train"),
    "training.recipe": ("Recipe",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spikeguard' has no attribute {name!r}")
    return getattr(import_module(f"spikeguard.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
