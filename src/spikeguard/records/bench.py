"""What the bench stores: seconds, peak memory and growth of every contender."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from spikeguard.records.base import Record
from spikeguard.runtime.machine import Machine


@dataclass(frozen=True)
class BenchSettings:
    """``rounds`` of every task (the median counts). ``quick``: the small network only, fewer images, no
    growth curves."""

    quick: bool = False
    rounds: int = 5
    device: str = "cpu"


@dataclass(frozen=True)
class Subject:
    """A network by name, its options, and the batch it is timed on."""

    name: str
    network: str
    batch: int
    options: dict[str, Any] = field(default_factory=dict)
    timesteps: int = 4
    in_shape: tuple[int, int, int] = (3, 32, 32)


@dataclass(frozen=True)
class Agreement:
    """A twin against our network: share of equal predicted classes, parameters, classes that occur."""

    same_classes: float
    parameters: int
    classes_used: int


@dataclass(frozen=True)
class Dropping:
    """PGD at an ``eps`` that the share ``survive`` of the images survives.

    ``faster``: seconds of all steps over seconds where broken samples leave the batch. ``same_outcome``:
    share of images with our outcome, by framework.
    """

    eps: float
    survive: float
    faster: float
    same_outcome: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """Seconds of each contender in each round, and medians of ratios within rounds.

    ``best``: our fastest contender. ``over_floor``: over the floor of the same precision.
    ``best_over_floor``: over the fastest floor. ``parts``: share of a step's time. ``operations``: floating
    point operations of a step. ``steps``: of the attack.
    """

    seconds: dict[str, tuple[float, ...]]
    median: dict[str, float]
    best: str
    best_precision: str
    over_floor: dict[str, float]
    best_over_floor: float
    over_best: dict[str, float]
    images: int
    images_per_second: dict[str, float]
    subject: Subject | None = None
    agreement: dict[str, Agreement] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    operations: int | None = None
    steps: int | None = None
    dropping: Dropping | None = None


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of a training step by subject and contender; None where they were not measured."""

    bytes: dict[str, dict[str, int | None]]
    subjects: tuple[Subject, ...] = ()


@dataclass(frozen=True)
class GrowthCurve:
    """Seconds at each value of an axis; ``power``: exponent between the last two values (1 is linear)."""

    values: tuple[int, ...]
    seconds: tuple[float, ...]
    power: float


@dataclass(frozen=True)
class LargeCase:
    """Bytes of a training step of a large case, with and without checkpoints; None where it does not fit."""

    subject: Subject
    bytes: dict[str, int | None]


@dataclass(frozen=True)
class Growth:
    """Curves by axis, each from the base case; one large case."""

    curves: dict[str, GrowthCurve]
    base: Subject
    large: LargeCase


@dataclass(frozen=True)
class BenchRecord(Record):
    """The bench; ``timed`` by task. ``path``: how neurons were computed, 'native', 'compiled' or 'eager'.
    ``peers``: versions of the other frameworks."""

    kind: ClassVar[str] = "bench"
    settings: BenchSettings
    machine: Machine
    threads: int
    path: str
    peers: dict[str, str]
    timed: dict[str, Timing] = field(default_factory=dict)
    memory: PeakMemory | None = None
    growth: Growth | None = None
    finished: bool = False
