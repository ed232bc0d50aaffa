"""Defences by name."""

from spikeguard.defenses.adversarial import AT
from spikeguard.defenses.base import Defense, Hooks, View
from spikeguard.defenses.tgo import TGO

DEFENSES: dict[str, type[Defense]] = {"tgo": TGO, "at": AT}

__all__ = ["AT", "DEFENSES", "TGO", "Defense", "Hooks", "View"]
