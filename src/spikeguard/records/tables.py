"""The record of a table: networks by attacks, at one budget or several."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from spikeguard.records.base import Record
from spikeguard.records.schema import Accuracy, Level, Masking, Origin, Settings
from spikeguard.runtime.machine import Machine


@dataclass(frozen=True)
class TableColumn:
    """An attack as a column, or an audit. ``name``: as a user writes it ('pgd20-x5'); ``attack``: a name in
    ``ATTACKS``, or 'audit', whose ``effort`` is the suite; ``eot``: gradients averaged in each step against a
    random network, None for the default."""

    name: str
    attack: str
    settings: Settings = field(default_factory=dict)
    eot: int | None = None
    effort: str | None = None


@dataclass(frozen=True)
class TableCell:
    """What one column leaves of one network at one budget.

    ``file``: the record of the attack or audit, as seen from the table's. ``masking``: of an audit.
    ``failed``: why there is no number.
    """

    column: str
    eps: float
    accuracy: Accuracy | None = None
    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    flags: tuple[tuple[str, Level], ...] = ()
    masking: Masking | None = None
    file: str | None = None
    failed: str | None = None

    @property
    def errors(self) -> tuple[str, ...]:
        """Ids of the flags of level error."""
        return tuple(id for id, level in self.flags if level == "error")


@dataclass(frozen=True)
class TableRow:
    """A network with its cells. ``model``, ``images``: digests; ``random_model``: scored over fresh draws."""

    network: str
    origin: Origin
    clean: Accuracy
    model: str
    images: str
    random_model: bool
    cells: tuple[TableCell, ...] = ()

    def cell(self, column: str, eps: float) -> TableCell | None:
        """The cell of a column at a budget."""
        return next((c for c in self.cells if c.column == column and c.eps == eps), None)


@dataclass(frozen=True)
class TableRecord(Record):
    """A table: the same attacks on the same images for every network."""

    kind: ClassVar[str] = "table"
    norm: str
    eps: tuple[float, ...]
    columns: tuple[TableColumn, ...]
    seed: int
    batch_size: int
    machine: Machine
    rows: tuple[TableRow, ...] = ()
