"""Records of what was reproduced: a table of the paper, and a record that was measured again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from spikeguard.records.base import Record
from spikeguard.records.schema import Accuracy, Settings
from spikeguard.records.studies import StudyMachine
from spikeguard.records.tables import TableColumn, TableRow
from spikeguard.records.training import TrainingCost
from spikeguard.runtime.machine import Machine


@dataclass(frozen=True)
class NotReproduced:
    """A part of the paper that is not measured here, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class ReproductionRow(Record):
    """One network of a reproduction: a file of its own while others run.

    ``training``, ``method``: the row of the paper's table; ``table``: clean accuracy and a cell for each
    attack; ``failed``: why there is none; ``fingerprint``: hash of all that the numbers depend on.
    """

    kind: ClassVar[str] = "reproduction row"
    training: str
    method: str
    seed: int
    recipe: Settings
    fingerprint: str
    cost: TrainingCost | None = None
    parameters: int | None = None
    validation_accuracy: float | None = None
    weights: str | None = None
    table: TableRow | None = None
    machine: StudyMachine | None = None
    failed: str | None = None

    @property
    def row(self) -> str:
        """The row's name."""
        return self.training if self.method == "none" else f"{self.training} + {self.method}"


@dataclass(frozen=True)
class ReproductionRecord(Record):
    """An experiment of the paper at a scale. ``deviations``: fields of recipes that differ from the paper's
    scale; ``planned``: how many networks it has with one seed each."""

    kind: ClassVar[str] = "reproduction"
    experiment: str
    scale: str
    images: int
    eps: float
    columns: tuple[TableColumn, ...]
    planned: int
    machine: Machine
    rows: tuple[ReproductionRow, ...] = ()
    deviations: tuple[str, ...] = ()

    def row(self, name: str) -> tuple[ReproductionRow, ...]:
        """The finished networks of a row, one a seed."""
        return tuple(r for r in self.rows if r.row == name and r.table is not None)


Agreement = Literal["same", "agrees", "differs"]


@dataclass(frozen=True)
class Measured:
    """A number of a record beside what came out again. ``again``: one for each seed; ``allowed``: the largest
    difference that chance explains; ``says``: 'same' where nothing changed."""

    what: str
    published: Accuracy
    again: tuple[Accuracy, ...]
    allowed: float
    says: Agreement


@dataclass(frozen=True)
class AgreementRecord(Record):
    """A network of a record, trained and measured again. ``record``: its file; ``cell``: which of its
    networks; ``seeds``: of the trainings; ``spread_known``: whether several seeds say how much a seed alone
    changes; ``older_suite``: the suite of the record's audit, where today's has other attacks."""

    kind: ClassVar[str] = "agreement"
    record: str
    about: str
    cell: str
    recipe: Settings
    seeds: tuple[int, ...]
    spread_known: bool
    numbers: tuple[Measured, ...]
    machine: Machine
    seconds: float
    same_weights: bool | None = None
    older_suite: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether every number does."""
        return all(number.says != "differs" for number in self.numbers)
