"""What is kept of a long training on CIFAR: a record of each network, and of its pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spikeguard.records.base import Record
from spikeguard.records.schema import Settings
from spikeguard.records.studies import StudyAudit, StudyMachine
from spikeguard.records.training import TrainingRecord


@dataclass(frozen=True)
class Piece:
    """A part of a training that one process did, on one machine.

    ``began``: UTC; ``first`` and ``last`` step; ``seconds`` without pauses; ``cpu_seconds`` of all threads:
    they say what a training costs where other work shares the cores.
    """

    began: str
    first: int
    last: int
    seconds: float
    cpu_seconds: float
    machine: StudyMachine
    torch: str
    spikeguard: str


@dataclass(frozen=True)
class Pieces(Record):
    """The parts of a training so far."""

    kind: ClassVar[str] = "cifar pieces"
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class CellRecord(Record):
    """A finished cell: what it is for, its training, its audit on validation images.

    ``eps``: budget of the audit under Linf. ``failed``: why there is no audit, or no training. ``weights``:
    sha256 of the file beside the record.
    """

    kind: ClassVar[str] = "cifar cell"
    name: str
    question: str
    minutes: float
    recipe: Settings
    training: TrainingRecord | None = None
    audit: StudyAudit | None = None
    failed: str | None = None
    pieces: tuple[Piece, ...] = ()
    weights: str | None = None
    eps: float | None = None
