"""A reproduction beside the paper: one line a row, and the gains that the paper claims. From records only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from spikeguard.auditing.compare import Z
from spikeguard.records.reproduction import ReproductionRecord, ReproductionRow
from spikeguard.records.schema import Accuracy
from spikeguard.records.tables import TableCell, TableColumn
from spikeguard.reproduce.paper import Paper, PaperRow
from spikeguard.stats import wilson

CLEAN = "clean"


@dataclass(frozen=True)
class Pair:
    """A number of the paper in %, None where it gives none, and ours: means over seeds, None without one."""

    published: float | None
    ours: float | None
    low: float = 0.0
    high: float = 0.0
    reliable: bool = True


@dataclass(frozen=True)
class Line:
    """A row beside the paper's. ``worst``: what the audit leaves; ``own``: what PGD-20 says within it."""

    row: PaperRow
    seeds: int
    pairs: dict[str, Pair]
    worst: Pair
    own: float | None
    training_seconds: float
    attack_seconds: float
    parameters: int | None
    failed: str | None = None


@dataclass(frozen=True)
class Gain:
    """What a method adds to a regime under one column, in points: the paper's, ours, and whether ours may be
    chance (the 95 % interval of the difference holds 0)."""

    training: str
    method: str
    column: str
    published: float | None
    ours: float
    chance: bool

    @property
    def same_sign(self) -> bool | None:
        """Whether both point in the same direction; None where the paper says nothing."""
        return None if self.published is None else (self.published > 0) == (self.ours > 0)


def attacks(record: ReproductionRecord) -> list[TableColumn]:
    """The paper's columns, without the audit."""
    return [c for c in record.columns if c.effort is None]


def audit_column(record: ReproductionRecord) -> TableColumn:
    """The audit's column."""
    return next(c for c in record.columns if c.effort is not None)


def lines(record: ReproductionRecord, paper: Paper) -> list[Line]:
    """A line for each row of the paper's table, in its order, finished or not."""
    return [_line(record, row) for row in paper.experiment(record.experiment).rows]


def _line(record: ReproductionRecord, row: PaperRow) -> Line:
    every = [r for r in record.rows if r.row == row.name]
    done = record.row(row.name)
    clean = [r.table.clean for r in done if r.table is not None]
    pairs = {CLEAN: _pair(row.published.get(CLEAN), clean)}
    for column in attacks(record):
        found = _accuracies(done, column, record.eps)
        pairs[column.name] = _pair(row.published.get(column.name), found)
    audits = [c for c in (_cell(r, audit_column(record), record.eps) for r in done) if c is not None]
    own = [c.masking.pgd20 for c in audits if c.masking is not None]
    worst = _pair(None, [c.accuracy for c in audits if c.accuracy is not None])
    return Line(
        row,
        len(done),
        pairs,
        Pair(None, worst.ours, worst.low, worst.high, not any(c.errors for c in audits)),
        100 * fmean(own) if own else None,
        _mean([r.cost.seconds for r in done if r.cost]),
        _mean([sum(c.seconds for c in r.table.cells) for r in done if r.table]),
        next((r.parameters for r in done), None),
        next((r.failed for r in every if r.failed), None),
    )


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def _cell(row: ReproductionRow, column: TableColumn, eps: float) -> TableCell | None:
    return None if row.table is None else row.table.cell(column.name, eps)


def _accuracies(rows: Sequence[ReproductionRow], column: TableColumn, eps: float) -> list[Accuracy]:
    cells = [_cell(row, column, eps) for row in rows]
    return [c.accuracy for c in cells if c is not None and c.accuracy is not None]


def _pair(published: float | None, found: Sequence[Accuracy]) -> Pair:
    """The interval is over the choice of images, as if the images of all seeds were one set of that size."""
    if not found:
        return Pair(published, None)
    share, n = fmean(a.value for a in found), found[0].n
    low, high = wilson(round(share * n), n)
    return Pair(published, 100 * share, 100 * low, 100 * high)


def gains(record: ReproductionRecord, paper: Paper) -> list[Gain]:
    """What each method adds to its regime, under every attack and in the worst case."""
    every = {(line.row.training, line.row.method): line for line in lines(record, paper)}
    found = []
    for (training, method), line in every.items():
        base = every.get((training, "none"))
        if method == "none" or base is None:
            continue
        for name, pair in {**line.pairs, "worst case": line.worst}.items():
            other = base.worst if name == "worst case" else base.pairs[name]
            if pair.ours is None or other.ours is None:
                continue
            published = (
                None
                if pair.published is None or other.published is None
                else pair.published - other.published
            )
            ours = pair.ours - other.ours
            chance = abs(ours) <= 100 * Z * _deviation(pair.ours, other.ours, record.images)
            found.append(Gain(training, method, name, published, ours, chance))
    return found


def _deviation(a: float, b: float, n: int) -> float:
    """Standard deviation of the difference of two shares in %, each of n images."""
    return float(sum(p * (1 - p) / n for p in (a / 100, b / 100)) ** 0.5)
