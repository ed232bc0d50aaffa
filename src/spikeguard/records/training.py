"""What is stored of a training. Accuracies are fractions in [0, 1], times are seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from spikeguard.records.base import Record
from spikeguard.records.schema import Settings
from spikeguard.runtime.machine import Machine


@dataclass(frozen=True)
class Conditions:
    """What a training depends on besides its recipe; a resumed training needs the same."""

    threads: int
    path: str
    device: str
    torch: str
    spikeguard: str | None = None
    instructions: tuple[str, ...] = ()
    precision: str | None = None


@dataclass(frozen=True)
class TrainingCost:
    """Seconds, steps, and training images of an epoch."""

    seconds: float
    steps: int
    images: int


Measured = float | bool | dict[str, float]
"""What a defense reports of an epoch: a number, yes or no, or a number for each layer."""


@dataclass(frozen=True)
class EpochRow:
    """Means over an epoch; ``measured``: what defenses report, by name."""

    epoch: int
    loss: float
    task_loss: float
    penalty: float
    train_accuracy: float
    seconds: float
    validation_accuracy: float | None = None
    measured: dict[str, Measured] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingRecord(Record):
    """A finished training. ``kept_accuracy``: validation accuracy of the network that is kept, if a defense
    changed it after the last epoch. ``weights``: the digest of the file of weights. ``plugins``: package and
    version, or module, of what others registered, by kind and name ("defense mine")."""

    kind: ClassVar[str] = "training"
    recipe: Settings
    conditions: Conditions
    machine: Machine
    cost: TrainingCost
    parameters: int
    epochs: tuple[EpochRow, ...]
    kept_accuracy: float | None = None
    precision: str | None = None
    weights: str | None = None
    plugins: dict[str, str] = field(default_factory=dict)

    @property
    def validation_accuracy(self) -> float | None:
        """Validation accuracy of the network that is kept."""
        last = self.epochs[-1].validation_accuracy if self.epochs else None
        return last if self.kept_accuracy is None else self.kept_accuracy


@dataclass(frozen=True)
class HardeningRecord(Record):
    """A finished ``sg.harden``: its settings, and a row for each epoch. ``weights``: digest of the file."""

    kind: ClassVar[str] = "hardening"
    settings: Settings
    model: str
    machine: Machine
    cost: TrainingCost
    parameters: int
    epochs: tuple[EpochRow, ...]
    weights: str | None = None
