"""The union of several audits of one model: a sample counts as broken if any of them broke it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from spikeguard.auditing.record import save
from spikeguard.auditing.witnesses import Witnesses, witness_file
from spikeguard.errors import UserError
from spikeguard.records.base import Record
from spikeguard.records.schema import Accuracy, AuditRecord, Cost, MergedPart, Origin, SuiteId
from spikeguard.runtime.machine import machine

SAME: dict[str, Callable[[AuditRecord], object]] = {
    "images": lambda record: record.digests and record.digests.images,
    "model": lambda record: record.digests and record.digests.model,
    "threat": lambda record: record.threat,
    "random_model": lambda record: record.random_model,
}
"""What records of one union have in common."""


def audits(records: Sequence[Record], at_least: int = 1) -> list[AuditRecord]:
    """The records, if they are audits and not too few; else UserError."""
    if len(records) < at_least:
        raise UserError(f"needs at least {at_least} records, got {len(records)}")
    found = [record for record in records if isinstance(record, AuditRecord)]
    if len(found) < len(records):
        other = next(record for record in records if not isinstance(record, AuditRecord))
        raise UserError(f"a record of kind {other.kind!r} is no audit")
    return found


def merge(records: Sequence[Record]) -> AuditRecord:
    """The union of audits of the same model, images and threat, without witnesses (``merge_files`` has them).

    Raises:
        UserError: fewer than two records, or records that differ in model, images or threat.
    """
    parts = audits(records, 2)
    first = parts[0]
    for other in parts[1:]:
        for name, get in SAME.items():
            if get(other) != get(first):
                raise UserError(
                    f"records differ in {name} ({get(first)} and {get(other)}): only audits of the same "
                    "model and images have a union"
                )
    chosen = chosen_parts(parts)
    starts = [sum(len(p.members) for p in parts[:k]) for k in range(len(parts))]

    def moved(column: Callable[[AuditRecord], Sequence[int]]) -> tuple[int, ...]:
        """A column of member positions, of each image's chosen part, in the united list of members."""
        rows = ((starts[k], column(parts[k])[i]) for i, k in enumerate(chosen) if column(parts[k]))
        return tuple(at if at < 0 else start + at for start, at in rows)

    right = tuple(parts[k].right[i] for i, k in enumerate(chosen))
    worst = Accuracy.of(sum(right) / first.images, first.images)
    flags = tuple(f for p in parts for f in p.flags)
    errors = [f.id for f in flags if f.level == "error"]
    return AuditRecord(
        suite=SuiteId(
            " and ".join(dict.fromkeys(p.suite.hash for p in parts)),
            "union",
            f"union of {' and '.join(sorted(p.suite.hash for p in parts))}",
        ),
        threat=first.threat,
        seed=first.seed,
        images=first.images,
        random_model=first.random_model,
        scored_by=first.scored_by,
        clean=first.clean,
        worst_case=worst,
        verdict=verdict_of([MergedPart(p.suite, p.worst_case) for p in parts], worst, errors),
        members=tuple(replace(m, record=k) for k, p in enumerate(parts) for m in p.members),
        first_by=moved(lambda p: p.first_by),
        right=right,
        machine=machine(),
        origin=first.origin if first.origin.target else Origin(),
        batch_size=first.batch_size,
        digests=first.digests,
        flags=flags,
        second_by=moved(lambda p: p.second_by),
        right_clean=first.right_clean,
        index=first.index,
        cost=_sum([p.cost for p in parts]),
        merged_from=tuple(MergedPart(p.suite, p.worst_case, p.seed, p.origin.target) for p in parts),
    )


def merge_files(paths: Sequence[Path], out: Path) -> AuditRecord:
    """Merge the audits in some files and write the union and its witnesses to ``out``; returns the record."""
    parts = [AuditRecord.read(path) for path in paths]
    union = merge(parts)
    held = []
    for k, (path, part) in enumerate(zip(paths, parts, strict=True)):
        if part.witnesses is None:
            raise UserError(f"{path} names no file of witnesses")
        rows = {i for i, chosen in enumerate(chosen_parts(parts)) if chosen == k}
        held.append(Witnesses.load(witness_file(path.parent, part.witnesses), part.images).of(rows))
    return save(union, Witnesses.joined(held), out)


def chosen_parts(parts: Sequence[AuditRecord]) -> list[int]:
    """For each image, the number of the audit in which it is right least often (the first of equals)."""
    count = range(len(parts))
    return [min(count, key=lambda k: parts[k].right[i]) for i in range(parts[0].images)]


def verdict_of(parts: Sequence[MergedPart], worst: Accuracy, errors: Sequence[str]) -> str:
    """The verdict of a union of audits, in one sentence."""
    suites = " and ".join(dict.fromkeys(f"{p.suite.version}, {p.suite.effort}" for p in parts))
    low, high = 100 * worst.low, 100 * worst.high
    text = (
        f"at most {100 * worst.value:.1f} % ({low:.1f} to {high:.1f}) under the union of {len(parts)} "
        f"audits ({suites})."
    )
    return f"Not reliable ({', '.join(dict.fromkeys(errors))}): {text}" if errors else text


def _sum(costs: Sequence[Cost]) -> Cost:
    return Cost(
        round(sum(c.seconds for c in costs), 2),
        sum(c.forwards for c in costs),
        sum(c.backwards for c in costs),
        round(sum(c.total_seconds or 0.0 for c in costs), 1),
    )
