"""Every attack by name, with the norms it supports: what the command line and the tests iterate over."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from spikeguard.attacks.apgd import apgd
from spikeguard.attacks.block_search import block_search
from spikeguard.attacks.cw import cw
from spikeguard.attacks.fab import fab
from spikeguard.attacks.loop import Attacked
from spikeguard.attacks.pgd import bim, fgsm, pgd, rfgsm
from spikeguard.attacks.random_search import random_noise, random_search
from spikeguard.attacks.rays import rays
from spikeguard.attacks.sapgd import sapgd
from spikeguard.attacks.square import square
from spikeguard.attacks.targeted import apgd_targeted, targeted
from spikeguard.registry import Registry
from spikeguard.threat import THREATS

ALL_NORMS = tuple(THREATS)


@dataclass(frozen=True)
class Attack:
    """A public attack: ``function(model, x, y, threat, **settings) -> Attacked`` and the norms it supports.

    ``norms`` are keys of ``spikeguard.threat.THREATS``.

    >>> attack = sg.attacks.ATTACKS["cw"]
    >>> attack.norms, "steps" in attack.parameters
    (('l2',), True)
    """

    function: Callable[..., Attacked]
    norms: tuple[str, ...] = ALL_NORMS

    @property
    def name(self) -> str:
        """The name in ``ATTACKS`` and in ``spikeguard.attacks``."""
        return self.function.__name__

    @property
    def summary(self) -> str:
        """The first sentence of the function's docstring, on one line."""
        return " ".join((inspect.getdoc(self.function) or "").partition("\n\n")[0].split())

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The keyword arguments with their defaults, in order; without model, images, labels and threat."""
        every = inspect.signature(self.function).parameters
        return MappingProxyType({k: p for k, p in every.items() if p.kind is p.KEYWORD_ONLY})


ATTACKS = Registry(
    "attack",
    {
        entry.name: entry
        for entry in (
            Attack(fgsm),
            Attack(rfgsm, ("linf",)),
            Attack(bim),
            Attack(pgd),
            Attack(apgd),
            Attack(sapgd),
            Attack(apgd_targeted),
            Attack(targeted),
            Attack(fab),
            Attack(cw, ("l2",)),
            Attack(block_search),
            Attack(square),
            Attack(rays),
            Attack(random_search),
            Attack(random_noise),
        )
    },
)
"""All attacks, from one gradient step to searches that need no gradient."""
