"""The stages of the study.

Train and rank every network, confirm the best on fresh seeds, score the finalists once on test images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from spikeguard.auditing.suite import Effort
from spikeguard.errors import UserError
from spikeguard.records.studies import StudyRecord, StudyRow, StudySettings
from spikeguard.sweep.cells import Cell, Context
from spikeguard.sweep.workers import Work, put_in_order, rows_of
from studies.embedded import matrix
from studies.embedded.frontier import best, by_worst_case, complete_rows, finished_seeds, key_of, most_robust
from studies.embedded.matrix import CONFIRMING, EPS, FRESH, LOW, Key, StudySize, on_frontier
from studies.embedded.ranking import AuditInFull, Rank, Score, fingerprint_of

RECORD_NAME = "embedded.json"


@dataclass
class _Study:
    """The record of a study while its stages fill it."""

    context: Context
    size: StudySize
    jobs: int
    record: StudyRecord

    def save(self) -> None:
        self.record.write(self.context.out / RECORD_NAME)

    def rank(self, cells: list[Cell]) -> None:
        """Train and rank every network that the record lacks, or that was made in another way."""
        for cell, row in self._rows(Rank(self.size.ranked_on), _missing(cells, self.record.cells, "quick")):
            self.record = replace(self.record, cells=put_in_order(self.record.cells, cell, row, cells))
            self.save()

    def confirm(self, cells: list[Cell]) -> None:
        """Train and rank networks of fresh seeds."""
        missing = _missing(cells, self.record.confirmed, "quick")
        for cell, row in self._rows(Rank(self.size.ranked_on), missing):
            confirmed = put_in_order(self.record.confirmed, cell, row, cells)
            self.record = replace(self.record, confirmed=confirmed)
            self.save()

    def score(self, cells: list[Cell]) -> None:
        """Audit on test images, once a network."""
        missing = [c for c in cells if c.name not in self.record.test]
        for cell, row in self._rows(Score(self.size.scored_on), missing):
            self.record = replace(self.record, test=put_in_order(self.record.test, cell, row, cells))
            self.save()

    def audit_in_full(self, cells: list[Cell]) -> None:
        """Audit in full what was chosen."""
        missing = _missing(cells, self.record.full, "full")
        for cell, row in self._rows(AuditInFull(self.size.ranked_on), missing):
            self.record = replace(self.record, full=put_in_order(self.record.full, cell, row, cells))
            self.save()

    def _rows(self, work: Work, cells: list[Cell]) -> Iterator[tuple[Cell, StudyRow]]:
        return rows_of(self.context, work, cells, self.jobs)


def _missing(cells: list[Cell], rows: Mapping[str, StudyRow], effort: Effort) -> list[Cell]:
    """The networks without a row, or with a row that was made in another way."""
    return [c for c in cells if c.name not in rows or rows[c.name].fingerprint != fingerprint_of(c, effort)]


def run(size: StudySize, context: Context, *, finish: bool = True, jobs: int = 1) -> StudyRecord:
    """Train and rank every network that ``context.out`` lacks; returns the record, written after each one.

    With ``finish`` three more stages follow. The row with the highest mean margin over the frontier and the
    row with the highest mean worst case are trained and ranked again, with the frontier, on fresh seeds: only
    these show whether they lie above it. The finalists are scored once on test images. The first networks of
    the two rows are audited in full on the images that ranked them. The choice is final until the study gets
    other rows or seeds; earlier choices stay in the record. ``jobs`` networks train at a time, each in a
    process with its share of the threads. UserError if the folder holds a study with other settings;
    Interrupted after ``context.stop``, with everything kept.
    """
    cells = list(matrix.cells(size))
    study = _Study(context, size, jobs, _open(size, context.out, cells))
    study.rank(cells)
    study.save()
    if finish:
        study.record = _choose(study.record, cells)
        _finish(study, cells)
        study.save()
    return study.record


def _open(size: StudySize, out: Path, cells: list[Cell]) -> StudyRecord:
    """The record in a folder or a new one, without networks that this matrix no longer has."""
    path, settings = out / RECORD_NAME, StudySettings(size.epochs, size.ranked_on, size.scored_on)
    record = StudyRecord.read(path) if path.exists() else StudyRecord(settings, EPS, LOW)
    if record.settings != settings:
        raise UserError(
            f"{out} holds a study with settings {asdict(record.settings)}, now {asdict(settings)}: choose "
            "another folder with --out"
        )
    names = {c.name for c in cells}
    kept = {name: row for name, row in record.cells.items() if name in names or row.seed >= size.seeds}
    return replace(record, cells=kept, planned=tuple((c.group, c.row, c.seed) for c in cells))


def _choose(record: StudyRecord, cells: list[Cell]) -> StudyRecord:
    """The record with the best rows and the finalists, chosen again only if rows or seeds were added."""
    among = tuple(sorted({": ".join(c.key) for c in cells}))
    seeds = tuple(sorted({c.seed for c in finished_seeds(record.cells).values()}))
    if (record.chosen_among, record.chosen_on) == (among, seeds):
        return record
    return replace(
        record,
        best=best(record.cells),
        most_robust=most_robust(record.cells),
        finalists=finalists(record.cells, cells),
        chosen_on=seeds,
        chosen_among=among,
    )


def _finish(study: _Study, cells: list[Cell]) -> None:
    """Confirm what was chosen on fresh seeds, score the finalists, audit the chosen in full."""
    record = study.record
    chosen = {key for key in (record.best, record.most_robust) if key}
    if chosen:
        before = {key_of(row) for row in record.confirmed.values()}  # reported side by side
        fresh = matrix.cells(study.size, range(FRESH, FRESH + CONFIRMING))
        study.confirm([c for c in fresh if on_frontier(c.key) or c.key in chosen | before])
    by_name = {c.name: c for c in cells}

    def seconds(name: str) -> float:
        row = record.cells.get(name)
        return row.audit.seconds if row and row.audit else 0.0

    # stochastic networks take longest, so they come last
    study.score([by_name[name] for name in sorted(record.finalists, key=seconds) if name in by_name])
    study.audit_in_full([c for c in cells if c.key in chosen and c.seed == 0])


def finalists(ranked: Mapping[str, StudyRow], cells: list[Cell]) -> tuple[str, ...]:
    """Names of the first-seed networks that are scored on test images.

    The best five by validation, the frontier, no defense at all.
    """
    rows, ranking = complete_rows(ranked), by_worst_case(ranked)
    first = {c.key: c.name for c in cells if c.seed == 0}
    frontier = [key for key in first if on_frontier(key) and key in rows]
    plain: list[Key] = [("BPTT", "none")] if ("BPTT", "none") in rows else []
    return tuple(first[key] for key in dict.fromkeys([*ranking[: matrix.BEST], *frontier, *plain]))
