"""Attacks: one file a step rule."""

from spikeguard.attacks.apgd import apgd
from spikeguard.attacks.ascent import Attacked
from spikeguard.attacks.pgd import bim, fgsm, pgd, rfgsm
from spikeguard.attacks.sapgd import sapgd
from spikeguard.attacks.square import square
from spikeguard.attacks.targeted import apgd_targeted, targeted

__all__ = ["Attacked", "apgd", "apgd_targeted", "bim", "fgsm", "pgd", "rfgsm", "sapgd", "square", "targeted"]
