"""What is stored of an audit and of an attack: a frozen dataclass for each record, and for each part of it.

Shares and accuracies are fractions in [0, 1], times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from spikeguard.records.base import Record
from spikeguard.records.build import Outcomes
from spikeguard.runtime.machine import Machine
from spikeguard.stats import wilson

Level = Literal["info", "warning", "error"]
Settings = dict[str, object]
"""Keyword arguments of an attack, fields of a recipe: plain values, checked by whoever uses them."""


# parts that several kinds of record share


@dataclass(frozen=True)
class Accuracy:
    """A share of ``n`` images with its 95 % interval over the choice of images (Wilson)."""

    value: float
    low: float
    high: float
    n: int

    @staticmethod
    def of(share: float, n: int) -> Accuracy:
        """The interval of a share of ``n`` images."""
        return Accuracy(share, *wilson(round(share * n), n), n)


@dataclass(frozen=True)
class Budget:
    """A norm ('linf', 'l2', 'l1') and the radius of its ball, for all images or one for each image."""

    norm: str
    eps: float | tuple[float, ...]


@dataclass(frozen=True)
class Origin:
    """Where model and images come from: ``target`` and ``data`` as the command line takes them, the recipe
    of the network, the split and number of images. ``beside``: the target as seen from the record's folder,
    from where it is found wherever the command runs. ``data`` of the user's own is a path; ``weights``: the
    file of a factory's weights."""

    target: str | None = None
    data: str | None = None
    data_dir: str | None = None
    split: str | None = None
    images: int | None = None
    recipe: Settings | None = None
    beside: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class SuiteId:
    """Which suite of attacks: version, effort, hash of all its constants."""

    version: str
    effort: str
    hash: str


@dataclass(frozen=True)
class Digests:
    """Hashes of images and labels, of the model's tensors, and of its printed structure."""

    images: str
    model: str
    described: str | None = None


@dataclass(frozen=True)
class WitnessFile:
    """The file beside the record that holds the inputs which break samples."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Flag:
    """One finding of an audit about its own reliability; ``evidence``: the numbers it rests on.

    >>> result = sg.audit(net, x, y, sg.Linf(8 / 255), effort="quick")
    >>> [flag.level for flag in result.flags if flag.id == "few-images"]
    ['info']
    """

    id: str
    level: Level
    message: str
    evidence: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """Seconds, and passes of single images. ``total_seconds`` includes checks and controls."""

    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    total_seconds: float | None = None


# the audit


@dataclass(frozen=True)
class Masking:
    """Accuracy under PGD-20 with the model's own gradient, split into what stronger attacks take from it and
    the worst case: ``pgd20 = optimizer + gradient + rest + worst_case``."""

    pgd20: float
    optimizer: float
    gradient: float
    rest: float
    worst_case: float


@dataclass(frozen=True)
class Convergence:
    """Samples that the local search breaks by each query, as pairs (query, samples); where none ran, the
    longest attack by each step.

    ``last_doubling``: the share of all images that the second half of them breaks.
    """

    member: str
    attempted: int
    broken_by_step: tuple[tuple[int, int], ...]
    last_doubling: float


@dataclass(frozen=True)
class MemberRow:
    """One attack of the suite: ``attempted`` samples, ``broken`` of these, ``first_by`` it before any other
    member, ``only_this_family``: broken by no other family.

    ``after``: accuracy left after it; ``alone``: accuracy under it alone, if it attacks all samples.
    ``failed``: why it did not run. ``record``: which of the merged records it belongs to.
    """

    id: str
    title: str
    family: str
    attack: str
    settings: Settings
    gradient: str
    needs: str = ""
    attempted: int = 0
    broken: int = 0
    first_by: int = 0
    only_this_family: int = 0
    after: float | None = None
    alone: Accuracy | None = None
    failed: str | None = None
    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    record: int | None = None


@dataclass(frozen=True)
class ZeroBudget:
    """Clean accuracy, and what attacks with a budget of zero leave."""

    clean: float
    left: float


@dataclass(frozen=True)
class FullBudget:
    """What gradient attacks leave if every image is allowed, and the accuracy of chance.

    ``breakable``: whether the model gives any two images different classes: there is something to find.
    """

    left: float
    chance: float
    breakable: bool = True


@dataclass(frozen=True)
class NoiseRow:
    """Images that random points and that gradients break at ``eps_factor`` times the budget, of ``right``."""

    right: int
    noise: int
    gradient: int
    p: float
    better: bool
    eps_factor: float = 1.0


@dataclass(frozen=True)
class PairRow:
    """Two attacks of which the first should not be weaker: images that only one of them breaks, McNemar's p.

    ``left_by``: accuracy that the stronger and the weaker one leave.
    """

    stronger: str
    weaker: str
    only_weaker: int
    only_stronger: int
    p: float
    left_by: tuple[float, float] | None = None


@dataclass(frozen=True)
class Restarts:
    """Accuracy that PGD-20 with the own gradient leaves after one and after five starts."""

    one: float
    five: float


@dataclass(frozen=True)
class Curve:
    """Accuracy against eps, as pairs (multiple of the budget, accuracy)."""

    images: int
    steps: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class SecondAttack:
    """Images that only black-box attacks broke, and how many of them strong gradient attacks leave again;
    ``share_low``: lower 95 % bound of the share of these."""

    black_box_only: int
    images: int
    left: int | None = None
    share_low: float | None = None


@dataclass(frozen=True)
class Controls:
    """Experiments whose outcome is known in advance if the attacks work.

    ``gradients_agree``: whether the model's own gradient is that of other surrogates and of BPDA too, as in a
    network without spikes; None if it was not measured.
    """

    images: int
    zero_budget: ZeroBudget
    full_budget: FullBudget
    against_noise: tuple[NoiseRow, ...]
    pairs: tuple[PairRow, ...]
    curve: Curve | None = None
    restarts: Restarts | None = None
    dead_surrogate_share: dict[str, float] = field(default_factory=dict)
    survivors_with_gradient: dict[str, float] = field(default_factory=dict)
    second_attack: SecondAttack | None = None
    gradients_agree: bool | None = None


@dataclass(frozen=True)
class MeanLogits:
    """Accuracies of the class of the mean logits over the draws of a random model."""

    clean: float
    worst_case: float


@dataclass(frozen=True)
class Ties:
    """Images whose highest score two classes or more share, so that the order of the classes decides: of all
    images without an attack, and of the broken ones at the input that breaks them."""

    clean: int
    broken: int


@dataclass(frozen=True)
class FreshCheck:
    """What a fresh process found: ``witnesses`` that hold, and what is ``wrong``, one line each."""

    held: bool
    witnesses: int
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class MergedPart:
    """One of the audits that a merged record is the union of."""

    suite: SuiteId
    worst_case: Accuracy
    seed: int | None = None
    target: str | None = None


@dataclass(frozen=True)
class AuditRecord(Record):
    """An audit: numbers, flags, and per image which member broke it.

    ``first_by``, ``second_by``: position in ``members`` of the first member to break it, and of the first one
    of another family; -1 for none, -2 for an image that is wrong without attack. ``right``: 0 or 1, or the
    share of draws of a random model, at the worst input found; ``right_clean``: at the image itself.
    ``without_family``: accuracy if a family were left out. ``left_out``: members that did not run, and why.
    """

    kind: ClassVar[str] = "audit"
    suite: SuiteId
    threat: Budget
    seed: int | None
    images: int
    random_model: bool
    scored_by: str
    clean: Accuracy
    worst_case: Accuracy
    verdict: str
    members: tuple[MemberRow, ...]
    first_by: tuple[int, ...]
    right: Outcomes
    machine: Machine
    origin: Origin = field(default_factory=Origin)
    batch_size: int | None = None
    digests: Digests | None = None
    flags: tuple[Flag, ...] = ()
    masking: Masking | None = None
    mean_logits: MeanLogits | None = None
    without_family: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    convergence: Convergence | None = None
    controls: Controls | None = None
    ties: Ties | None = None
    second_by: tuple[int, ...] = ()
    right_clean: Outcomes = ()
    index: tuple[int, ...] = ()
    cost: Cost = field(default_factory=Cost)
    witnesses: WitnessFile | None = None
    fresh_process: FreshCheck | None = None
    merged_from: tuple[MergedPart, ...] = ()

    @property
    def alone(self) -> dict[str, Accuracy]:
        """Accuracy under each member that attacked all images, by its id."""
        return {m.id: m.alone for m in self.members if m.alone is not None}

    @property
    def after(self) -> dict[str, float]:
        """Accuracy left after each member, by its id."""
        return {m.id: m.after for m in self.members if m.after is not None}

    @property
    def errors(self) -> tuple[str, ...]:
        """Ids of the flags of level error."""
        return tuple(f.id for f in self.flags if f.level == "error")

    def member(self, id: str) -> MemberRow | None:
        """The row of a member, None if the audit does not have it."""
        return next((m for m in self.members if m.id == id), None)


@dataclass(frozen=True)
class AttackRecord(Record):
    """A single attack; per image as in ``AuditRecord``."""

    kind: ClassVar[str] = "attack"
    attack: str
    settings: Settings
    threat: Budget
    seed: int
    images: int
    random_model: bool
    scored_by: str
    clean: Accuracy
    worst_case: Accuracy
    first_by: tuple[int, ...]
    machine: Machine
    right: Outcomes = ()
    origin: Origin = field(default_factory=Origin)
    batch_size: int | None = None
    digests: Digests | None = None
    flags: tuple[Flag, ...] = ()
    index: tuple[int, ...] = ()
    cost: Cost = field(default_factory=Cost)
    witnesses: WitnessFile | None = None

    @property
    def errors(self) -> tuple[str, ...]:
        """Ids of the flags of level error."""
        return tuple(f.id for f in self.flags if f.level == "error")
