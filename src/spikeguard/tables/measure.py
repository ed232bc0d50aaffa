"""One network under the columns of a table: every cell is an attack's or an audit's own record on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from spikeguard.auditing.audit import RECORD, audit
from spikeguard.auditing.export import budget_text
from spikeguard.auditing.member import Member
from spikeguard.auditing.record import budget, seen_from, weights
from spikeguard.auditing.single import SingleAttack, run_single
from spikeguard.auditing.state import digest
from spikeguard.auditing.suite import EFFORTS, Effort, fingerprint
from spikeguard.auditing.task import Plan
from spikeguard.data.images import Images
from spikeguard.errors import Interrupted, UserError
from spikeguard.models import Model
from spikeguard.random.draws import key
from spikeguard.records.plain import plain
from spikeguard.records.schema import AttackRecord, AuditRecord, Origin
from spikeguard.records.tables import TableCell, TableColumn, TableRow
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.runtime.stop import Stop
from spikeguard.tables.columns import member, work
from spikeguard.threat import Threat

CONTINUE = "what was found is kept: run the same command again"


@dataclass(frozen=True)
class Subject:
    """A network with its name in the table, the images that attack it, and where both come from."""

    name: str
    model: Model
    images: Images
    origin: Origin


@dataclass(frozen=True)
class Conditions:
    """Columns and budgets of a table, and where the records of its cells lie.

    ``folder``: of the table; ``random_eot``: gradients averaged against a random network where a column names
    no number; ``extra``: members of audits beside the suite.
    """

    columns: Sequence[TableColumn]
    threats: Sequence[Threat]
    folder: Path
    seed: int = 0
    batch_size: int = 250
    random_eot: int = 10
    extra: tuple[Member, ...] = ()

    def passes(self, images: int) -> int:
        """About how many passes of single images a network takes."""
        return images * len(self.threats) * sum(map(work, self.columns))


@dataclass(frozen=True)
class Watch:
    """Who shows progress, in passes of single images, and what ends the work."""

    progress: Progress = no_progress
    stop: Stop | None = None
    done: int = 0
    total: int = 0

    def part(self, title: str, passes: int) -> Progress:
        """Progress of a part that takes so many passes, as part of the whole."""

        def show(stage: str, done: int, total: int, /) -> None:
            self.progress(f"{title}: {stage}", self.done + passes * done // max(total, 1), self.total)

        return show


def slug(text: str) -> str:
    """A name as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text.lower()).strip("-.") or "network"


def size_of(threat: Threat) -> str:
    """A budget as a part of a file's name."""
    eps = threat.eps
    assert isinstance(eps, float)
    return f"{255 * eps:.4g}of255" if threat.norm == "linf" else f"{threat.norm}-{eps:.4g}"


def rows_of(subject: Subject, conditions: Conditions, watch: Watch) -> Iterator[TableRow]:
    """The row of a network after each of its cells. Cells that have their record are read, not run.

    A column that averages over draws is left out where the network is not random: it changes nothing.
    Interrupted after ``watch.stop``; what was found is kept.
    """
    row: TableRow | None = None
    done = watch.done
    for threat in conditions.threats:
        for column in conditions.columns:
            passes = len(subject.images) * work(column)
            if row is not None and column.eot and not row.random_model:
                done += passes
                continue
            part = replace(watch, done=done).part(
                f"{subject.name}, {column.name} at {budget_text(budget(threat))}", passes
            )
            cell, found = _cell(subject, column, threat, conditions, replace(watch, progress=part))
            if row is None and found is not None:
                row = _row(subject, found)
            done += passes
            if row is not None:
                row = replace(row, cells=(*row.cells, cell))
                yield row
    if row is None:
        raise UserError(f"{subject.name}: no column has a number ({cell.failed})")


def _row(subject: Subject, found: AttackRecord | AuditRecord) -> TableRow:
    """The row without cells."""
    assert found.digests is not None
    return TableRow(
        network=subject.name,
        origin=subject.origin,
        clean=found.clean,
        model=found.digests.model,
        images=found.digests.images,
        random_model=found.random_model,
    )


def _cell(
    subject: Subject, column: TableColumn, threat: Threat, conditions: Conditions, watch: Watch
) -> tuple[TableCell, AttackRecord | AuditRecord | None]:
    """A cell and the record it comes from; without one where the attack fails on this network."""
    assert isinstance(threat.eps, float)
    cell = TableCell(column.name, threat.eps)
    path = _file(subject, column, threat, conditions)
    run = _attack if column.effort is None else _audit
    try:
        found = run(subject, column, threat, conditions, watch, path)
    except Interrupted as error:
        raise Interrupted(f"stopped in {subject.name}, {column.name}; {CONTINUE}") from error
    except UserError as error:
        return replace(cell, failed=str(error)), None
    return (
        replace(
            cell,
            accuracy=found.worst_case,
            seconds=found.cost.total_seconds or found.cost.seconds,
            forwards=found.cost.forwards,
            backwards=found.cost.backwards,
            flags=tuple((flag.id, flag.level) for flag in found.flags),
            masking=found.masking if isinstance(found, AuditRecord) else None,
            file=os.path.relpath(path, conditions.folder),
        ),
        found,
    )


def _file(subject: Subject, column: TableColumn, threat: Threat, conditions: Conditions) -> Path:
    """Where the record of a cell lies: whatever its number depends on is part of the name."""
    plan = [conditions.seed, conditions.batch_size, column.eot or conditions.random_eot]
    suite = [*map(fingerprint, EFFORTS), *(m.id for m in conditions.extra)] if column.effort else []
    images = digest(subject.images.pixels(), subject.images.y)
    which = key(
        json.dumps(
            [weights(subject.model), images, plain(column), threat.norm, threat.eps, plan, suite], default=str
        )
    )
    name = f"{slug(column.name)}-{size_of(threat)}-{which % 16**8:08x}"
    folder = conditions.folder / "cells" / slug(subject.name)
    return folder / name / RECORD if column.effort else folder / f"{name}.json"


def _attack(
    subject: Subject,
    column: TableColumn,
    threat: Threat,
    conditions: Conditions,
    watch: Watch,
    path: Path,
) -> AttackRecord:
    if path.exists():
        return AttackRecord.read(path)
    plan = Plan(conditions.seed, conditions.batch_size, column.eot or conditions.random_eot)
    settings = {**column.settings, **({} if column.eot is None else {"eot": column.eot})}
    what = SingleAttack(column.attack, settings, member(column), threat, plan)
    origin = seen_from(path.parent, subject.origin)
    return run_single(what, subject.model, subject.images, path, origin, watch.progress, watch.stop)


def _audit(
    subject: Subject,
    column: TableColumn,
    threat: Threat,
    conditions: Conditions,
    watch: Watch,
    path: Path,
) -> AuditRecord:
    if path.exists():
        return AuditRecord.read(path)
    images = subject.images
    return audit(
        subject.model,
        images.pixels(),
        images.y,
        threat,
        effort=cast(Effort, column.effort),
        seed=conditions.seed,
        batch_size=conditions.batch_size,
        out=path.parent,
        progress=watch.progress,
        index=images.index,
        stop=watch.stop,
        origin=seen_from(path.parent, subject.origin),
        extra=conditions.extra,
    ).record
