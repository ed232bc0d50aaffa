"""Attacks: one file a step rule."""

from spikeguard.attacks.apgd import apgd
from spikeguard.attacks.ascent import Attacked
from spikeguard.attacks.cw import cw
from spikeguard.attacks.fab import fab
from spikeguard.attacks.hardlabel import rays
from spikeguard.attacks.pgd import bim, fgsm, pgd, rfgsm
from spikeguard.attacks.randomly import noise, random_search
from spikeguard.attacks.sapgd import sapgd
from spikeguard.attacks.square import square
from spikeguard.attacks.targeted import apgd_targeted, targeted

__all__ = [
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
]
