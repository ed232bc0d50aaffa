"""A defence: frozen settings that may change the network and, while it trains, hook into the loop. Every hook is optional."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from spikeguard.networks.classifier import Classifier


@dataclass
class View:
    """One forward pass of a training step: its images and the weight of its loss (0: looked at only)."""

    x: Tensor
    weight: float


class Hooks:
    """What a defence does during training. ``views`` maps a name ('clean', 'adversarial') to a forward pass."""

    def craft(self, net: Classifier, x: Tensor, y: Tensor, views: dict[str, View], key: int) -> None:
        """Change the training inputs of clean images ``x``; random draws come from ``key``."""

    def complete(self, x: Tensor, views: dict[str, View]) -> None:
        """Called after all ``craft``: add forward passes that this defence has to see."""

    def watch(self, net: Classifier, view: str) -> AbstractContextManager[object]:
        """Context around the forward pass of a view."""
        return nullcontext()

    def penalty(self, progress: float) -> Tensor | None:
        """Loss term of this step; ``progress`` runs from 0 to 1 over the training."""
        return None

    def report(self, net: Classifier, x: Tensor) -> dict[str, object]:
        """Figures for the metrics, measured on validation images at the end of an epoch."""
        return {}


@dataclass(frozen=True)
class Defense:
    """Settings of a defence; a subclass says what it does, and names the member of the audit's suite that is adaptive to it."""

    adaptive: ClassVar[str] = ""

    def prepare(self, net: Classifier) -> None:
        """Change the network itself, before training and after loading."""

    def start(self, net: Classifier) -> Hooks:
        """Hooks for one training."""
        return Hooks()
