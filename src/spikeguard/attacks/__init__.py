"""Attacks: one file a step rule."""

from collections.abc import Callable

from spikeguard.attacks.apgd import apgd
from spikeguard.attacks.block_search import block_search
from spikeguard.attacks.cw import cw
from spikeguard.attacks.fab import fab
from spikeguard.attacks.loop import Attacked
from spikeguard.attacks.pgd import bim, fgsm, pgd, rfgsm
from spikeguard.attacks.random_search import random_noise, random_search
from spikeguard.attacks.rays import rays
from spikeguard.attacks.registry import ATTACKS, Attack
from spikeguard.attacks.sapgd import sapgd
from spikeguard.attacks.square import square
from spikeguard.attacks.targeted import apgd_targeted, targeted

__all__ = [
    "ATTACKS",
    "Attack",
    "Attacked",
    "apgd",
    "apgd_targeted",
    "bim",
    "block_search",
    "cw",
    "fab",
    "fgsm",
    "pgd",
    "random_noise",
    "random_search",
    "rays",
    "rfgsm",
    "sapgd",
    "square",
    "targeted",
]


def __getattr__(name: str) -> Callable[..., Attacked]:
    """Attacks that were registered later."""
    if name.startswith("_") or name not in ATTACKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return ATTACKS[name].function
