"""Records that hold many networks: the demo and the study."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from spikeguard.records.base import Record
from spikeguard.records.build import Outcomes
from spikeguard.records.schema import Accuracy, AuditRecord, Level, Masking, SuiteId
from spikeguard.runtime.machine import Machine


@dataclass(frozen=True)
class DemoSettings:
    """Attacked test images, epochs of both trainings, seed."""

    images: int = 300
    epochs: int = 4
    seed: int = 0


@dataclass(frozen=True)
class NeighborShares:
    """Potentials near the threshold by layer: share with |u| < delta, share with |u| < delta standard
    deviations of the layer, that deviation, a histogram; ``mean``: of the absolute shares."""

    absolute: dict[str, float]
    relative: dict[str, float]
    spread: dict[str, float]
    histogram: dict[str, tuple[int, ...]]
    mean: float


@dataclass(frozen=True)
class DemoNetwork(Record):
    """One network of the demo. ``factor``: its batch-norm gains before training; ``attacks``: its audits by
    budget ('8/255'); ``curve``: pairs (eps, accuracy)."""

    kind: ClassVar[str] = "demo network"
    role: str
    label: str
    factor: float
    seconds: float
    epochs: int
    training_images: int
    parameters: int
    clean: Accuracy
    attacks: dict[str, AuditRecord]
    neighbors: NeighborShares
    curve: tuple[tuple[float, float], ...]
    attack_seconds: float


@dataclass(frozen=True)
class DemoRecord(Record):
    """The demo; without ``finished`` only its settings are known."""

    kind: ClassVar[str] = "demo"
    settings: DemoSettings
    finished: bool
    seed: int = 0
    images: int = 0
    data: str = ""
    eps: tuple[str, ...] = ()
    delta: float = 0.0
    edges: tuple[float, ...] = ()
    curve_attack: str = ""
    networks: tuple[DemoNetwork, ...] = ()
    path: str = ""
    threads: int = 0
    machine: Machine | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class StudySettings:
    """Epochs of a training, and attacked images in validation and on test images."""

    epochs: int
    ranked_on: int
    scored_on: int


@dataclass(frozen=True)
class StudyMachine:
    """What decides about the last bits of a training: the GPU, or instruction sets and threads."""

    device: str | None = None
    instructions: tuple[str, ...] = ()
    threads: int | None = None


@dataclass(frozen=True)
class StudyAudit:
    """What the study keeps of an audit. ``flags``: pairs (id, level); ``members``: how many attacks ran."""

    clean: Accuracy
    worst_case: Accuracy
    masking: Masking
    right: Outcomes
    right_clean: Outcomes
    flags: tuple[tuple[str, Level], ...]
    suite: SuiteId
    seconds: float
    members: int | None = None


@dataclass(frozen=True)
class StudyRow:
    """One network of the study: its place in the matrix, its training, its audit.

    ``failed``: why there is no audit. ``low``: the audit at the study's low budget. ``fingerprint``: hash of
    all that the numbers depend on.
    """

    group: str
    row: str
    seed: int
    fingerprint: str | None = None
    failed: str | None = None
    seconds: float | None = None
    validation_accuracy: float | None = None
    audit: StudyAudit | None = None
    low: StudyAudit | None = None
    flags: tuple[tuple[str, Level], ...] = ()
    machine: StudyMachine | None = None


@dataclass(frozen=True)
class StudyRecord(Record):
    """The study. Networks by name: ``cells`` are ranked, ``confirmed`` are trained and ranked on fresh seeds,
    ``test`` are scored once on test images, ``full`` are audited by the longest suite.

    ``planned``: group, row and seed of every network. ``best``, ``most_robust``: the chosen rows (group,
    row); ``chosen_on``, ``chosen_among``: the seeds and rows that chose them.
    """

    kind: ClassVar[str] = "study"
    settings: StudySettings
    eps: float
    low: float
    cells: dict[str, StudyRow] = field(default_factory=dict)
    confirmed: dict[str, StudyRow] = field(default_factory=dict)
    test: dict[str, StudyRow] = field(default_factory=dict)
    full: dict[str, StudyRow] = field(default_factory=dict)
    planned: tuple[tuple[str, str, int], ...] = ()
    best: tuple[str, str] | None = None
    most_robust: tuple[str, str] | None = None
    finalists: tuple[str, ...] = ()
    chosen_on: tuple[int, ...] | None = None
    chosen_among: tuple[str, ...] | None = None
