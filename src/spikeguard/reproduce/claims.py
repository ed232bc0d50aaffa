"""The numbers of a record that can be measured again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spikeguard.records.schema import Accuracy, Masking
from spikeguard.records.studies import StudyAudit
from spikeguard.records.tables import TableColumn, TableRow
from spikeguard.tables.columns import AUDIT

CLEAN, VALIDATION, OWN = "clean", "validation", "own PGD-20"


@dataclass(frozen=True)
class Claim:
    """A number of a record. ``what``: 'clean', 'validation', or the column that measures it, ``own`` for its
    PGD-20 alone; ``others``: the same number of other seeds."""

    what: str
    published: Accuracy | float
    column: TableColumn | None = None
    own: bool = False
    others: tuple[float, ...] = ()


def audit_claims(
    effort: str, clean: Accuracy, worst: Accuracy, masking: Masking | None, others: Sequence[StudyAudit] = ()
) -> tuple[Claim, ...]:
    """The numbers of an audit: clean accuracy, its PGD-20 alone, the worst case."""
    column = TableColumn(effort, AUDIT, effort=effort)
    claims = [Claim(CLEAN, clean, others=tuple(a.clean.value for a in others))]
    if masking is not None:
        own = Accuracy.of(masking.pgd20, worst.n)
        claims.append(Claim(OWN, own, column, True, tuple(a.masking.pgd20 for a in others)))
    claims.append(
        Claim(f"worst case ({effort})", worst, column, others=tuple(a.worst_case.value for a in others))
    )
    return tuple(claims)


def row_claims(
    row: TableRow, columns: Sequence[TableColumn], eps: float, others: Sequence[TableRow] = ()
) -> tuple[Claim, ...]:
    """The numbers of a row of a table at one budget."""
    claims = [Claim(CLEAN, row.clean, others=tuple(o.clean.value for o in others))]
    for column in columns:
        cell = row.cell(column.name, eps)
        if cell is None or cell.accuracy is None:
            continue
        beside = [found.accuracy for o in others if (found := o.cell(column.name, eps)) is not None]
        values = tuple(a.value for a in beside if a is not None)
        claims.append(Claim(column.name, cell.accuracy, column, others=values))
    return tuple(claims)
