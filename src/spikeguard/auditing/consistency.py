"""What a record says that follows from its own outcomes, computed again and compared. No model is run.

Outcomes are, for each image, who broke it first and second and whether it is right. Accuracies, intervals,
counts of members, accuracy left, verdict and the flags of controls follow from them. What no check of a
record can know is whether the attacks ran as it says; attacking again settles that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from spikeguard.auditing import findings
from spikeguard.auditing.flags import KINDS
from spikeguard.auditing.merge import verdict_of
from spikeguard.auditing.past_suites import PAST
from spikeguard.auditing.raise_flags import from_controls, from_ties
from spikeguard.auditing.state import CLEAN_WRONG, ROBUST
from spikeguard.auditing.suite import SUITES, VERSION, fingerprint
from spikeguard.errors import UserError
from spikeguard.records.base import Record
from spikeguard.records.schema import Accuracy, AttackRecord, AuditRecord, MemberRow

EXACT = 1e-6
"""Older records hold means in float32."""
ROUNDED = 1e-4
"""Shares of draws are written with four digits."""


def inconsistencies(record: AuditRecord | AttackRecord) -> list[str]:
    """What a record says about itself that does not fit, one line each."""
    wrong = _lengths(record)
    if wrong:  # nothing else can be computed
        return wrong
    wrong += _outcomes(record)
    for name, accuracy in _accuracies(record):
        wrong += _interval(name, accuracy, record.images)
    if isinstance(record, AuditRecord):
        wrong += [*_members(record), *_families(record), *_masking(record)]
        wrong += [*_convergence(record), *_suite(record), *_flags(record), *_verdict(record)]
    return wrong


def check_outcomes(record: Record, where: str) -> None:
    """UserError if what is read of a record for tables and tests does not follow from its outcomes."""
    if not isinstance(record, (AuditRecord, AttackRecord)):
        return
    if wrong := _lengths(record) or _outcomes(record):
        raise UserError(f"{where}: {wrong[0]}")


def _lengths(record: AuditRecord | AttackRecord) -> list[str]:
    columns = {"first_by": record.first_by, "right": record.right, "index": record.index}
    if isinstance(record, AuditRecord):
        columns |= {"second_by": record.second_by, "right_clean": record.right_clean}
    n = record.images
    required = {"first_by", "right"} if isinstance(record, AuditRecord) else {"first_by"}
    wrong = [
        f"{name} is about {len(column)} images, the record about {n}"
        for name, column in columns.items()
        if len(column) != n and (column or name in required)
    ]
    if isinstance(record, AuditRecord):
        most = len(record.members)
        odd = [f for f in (*record.first_by, *record.second_by) if not CLEAN_WRONG <= f < most]
        wrong += [f"an image was broken by member {odd[0]}, there are {most}"] if odd else []
    return wrong + (["two images have the same number"] if len(set(record.index)) < len(record.index) else [])


def _outcomes(record: AuditRecord | AttackRecord) -> list[str]:
    """``right``, ``right_clean`` and the two accuracies against who broke what."""
    n, first, wrong = record.images, record.first_by, []
    if not record.random_model:
        right = tuple(float(f == ROBUST) for f in first)
        if record.right and record.right != right:
            wrong.append(f"right is another than first_by says for {_differ(record.right, right)} images")
        clean = tuple(float(f != CLEAN_WRONG) for f in first)
        if isinstance(record, AuditRecord) and record.right_clean and record.right_clean != clean:
            wrong.append(
                f"right_clean is another than first_by says for {_differ(record.right_clean, clean)} images"
            )
        if abs(record.clean.value - sum(clean) / max(n, 1)) > EXACT:
            wrong.append(_other("clean accuracy", sum(clean) / n, record.clean.value))
    elif isinstance(record, AuditRecord) and record.right_clean:
        mean = sum(record.right_clean) / n
        if abs(record.clean.value - mean) > ROUNDED:
            wrong.append(_other("clean accuracy", mean, record.clean.value))
    mean = sum(record.right or [f == ROBUST for f in first]) / max(n, 1)
    if abs(record.worst_case.value - mean) > (ROUNDED if record.random_model else EXACT):
        wrong.append(_other("worst_case accuracy", mean, record.worst_case.value))
    return wrong


def _differ(one: Sequence[float], other: Sequence[float]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def _other(what: str, due: float, said: float) -> str:
    return f"{what} is {_percent(due)}, the record says {_percent(said)}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _accuracies(record: AuditRecord | AttackRecord) -> Iterator[tuple[str, Accuracy]]:
    yield "clean", record.clean
    yield "worst_case", record.worst_case
    for member in record.members if isinstance(record, AuditRecord) else ():
        if member.alone is not None:
            yield f"{member.id} alone", member.alone


def _interval(name: str, accuracy: Accuracy, n: int) -> list[str]:
    """An interval follows from the share and the number of images."""
    if not 0 <= accuracy.value <= 1 or accuracy.n != n:
        return [f"{name}: {accuracy.value} of {accuracy.n} images is no share of {n}"]
    due = Accuracy.of(accuracy.value, n)
    if max(abs(due.low - accuracy.low), abs(due.high - accuracy.high)) > EXACT:
        return [
            f"{name}: the interval is {_percent(due.low)} to {_percent(due.high)}, the record says "
            f"{_percent(accuracy.low)} to {_percent(accuracy.high)}"
        ]
    return []


def _members(record: AuditRecord) -> Iterator[str]:
    """Counts of every member against who broke what."""
    valid = sum(f != CLEAN_WRONG for f in record.first_by)
    second = record.second_by or (ROBUST,) * record.images
    settled = _settled(record)
    for number, m in enumerate(record.members):
        mine = [s for f, s in zip(record.first_by, second, strict=True) if f == number]
        if settled and m.first_by != len(mine):
            yield f"{m.id} broke {len(mine)} images first, the record says {m.first_by}"
        only = sum(s == ROBUST for s in mine)
        if settled and record.second_by and m.only_this_family != only:
            yield f"{m.id}: only_this_family is {only}, the record says {m.only_this_family}"
        if not m.first_by <= m.broken <= m.attempted <= valid and not record.random_model:
            yield f"{m.id}: of {valid} images {m.attempted} attempted and {m.broken} broken do not fit"
        if min(m.seconds, m.forwards, m.backwards) < 0:
            yield f"{m.id}: its cost is below 0"
        if settled:
            yield from _accuracy_after(record, number, m, valid)
    if _lost(record) < 0:
        yield "the worst case is below the accuracy after the last member"


def _accuracy_after(record: AuditRecord, number: int, m: MemberRow, valid: int) -> Iterator[str]:
    n, lost = record.images, _lost(record)
    left = sum(f == ROBUST or f > number for f in record.first_by) / n
    if not lost and m.after is not None and abs(m.after - left) > EXACT:
        yield _other(f"{m.id}: the accuracy after it", left, m.after)
    alone = (valid - m.broken) / n
    if m.alone is not None and m.failed is None and abs(m.alone.value - alone) > EXACT:
        yield _other(f"{m.id}: the accuracy under it alone", alone, m.alone.value)


def _settled(record: AuditRecord) -> bool:
    """Whether counts follow from the outcomes.

    Those of a random model are of other draws, those of a union are of its parts.
    """
    return not record.random_model and not record.merged_from


def _lost(record: AuditRecord) -> int:
    """Images whose witness held when it was found and not at the end: counts of members include them."""
    last = record.members[-1].after if record.members else None
    if last is None or not _settled(record):
        return 0
    return round((record.worst_case.value - last) * record.images)


def _families(record: AuditRecord) -> Iterator[str]:
    """Accuracy without a family: its own breaks that no other family has would be missed."""
    if not record.without_family or not _settled(record) or _lost(record):
        return
    families = dict.fromkeys(m.family for m in record.members)
    if set(families) != set(record.without_family):
        yield "without_family names other families than those of the members"
        return
    standing = sum(f == ROBUST for f in record.first_by)
    for family, share in record.without_family.items():
        lost = sum(
            f >= 0 and s == ROBUST and record.members[f].family == family
            for f, s in zip(record.first_by, record.second_by, strict=True)
        )
        due = (standing + lost) / record.images
        if abs(share - due) > EXACT:
            yield _other(f"the accuracy without {family}", due, share)


def _masking(record: AuditRecord) -> Iterator[str]:
    """The three parts add up to the gap between PGD-20 and the worst case."""
    parts = record.masking
    if parts is None:
        return
    start, whole = record.alone.get("pgd20"), parts.optimizer + parts.gradient + parts.rest + parts.worst_case
    if start is not None and abs(parts.pgd20 - start.value) > EXACT:
        yield _other("masking starts at PGD-20, which", start.value, parts.pgd20)
    if abs(parts.pgd20 - whole) > EXACT or min(parts.optimizer, parts.gradient, parts.rest) < -EXACT:
        yield "the parts of masking do not add up to the accuracy under PGD-20"
    if _settled(record) and not _lost(record) and abs(parts.worst_case - record.worst_case.value) > EXACT:
        yield _other("masking ends at the worst case, which", record.worst_case.value, parts.worst_case)


def _convergence(record: AuditRecord) -> Iterator[str]:
    curve = record.convergence
    if curve is None:
        return
    member, points = record.member(curve.member), dict(curve.broken_by_step)
    steps = max(points, default=0)
    rising = [count for _, count in sorted(points.items())]
    if member is None or curve.attempted != member.attempted or not points:
        yield "convergence is about another member than those of the record"
    elif rising != sorted(rising) or steps // 2 not in points or rising[-1] > curve.attempted:
        yield "convergence: the counts by step do not rise to at most what the member attempted"
    elif abs((points[steps] - points[steps // 2]) / record.images - curve.last_doubling) > EXACT:
        yield "convergence: last_doubling is another than the counts by step say"


def _suite(record: AuditRecord) -> Iterator[str]:
    """The hash is that of a known suite; every member of the effort ran, or the record says why not."""
    suite = record.suite
    if record.merged_from:
        return
    known = set(PAST.get((suite.version, suite.effort), ()))
    today = suite.version == VERSION and suite.effort in SUITES
    due = fingerprint(suite.effort, record.threat.norm, record.random_model) if today else None
    if suite.hash not in known | {due}:
        says = f"must be {due}" if due else "is of no suite known here"
        yield f"the hash {suite.hash} of {suite.version}, {suite.effort} {says}"
    if suite.hash != due or (record.random_model and suite.effort in ("full", "autoattack")):
        return  # other members, which are not known any more, or against random models
    named = {m.id for m in record.members} | set(record.left_out)
    if missing := [m.id for m in SUITES[suite.effort] if m.id not in named]:
        yield f"{suite.effort} has the member {missing[0]}, which the record does not name"


def _flags(record: AuditRecord) -> Iterator[str]:
    """Flags that follow from the record's own numbers."""
    raised = {f.id for f in record.flags}
    if unknown := sorted(raised - set(KINDS)):
        yield f"an unknown flag {unknown[0]!r}"
    due = {"not-reproduced"} if record.fresh_process is not None and not record.fresh_process.held else set()
    due |= {"random-model"} if record.random_model and not record.merged_from else set()
    if record.suite.version == VERSION:
        if levels := [f.id for f in record.flags if f.id in KINDS and f.level != KINDS[f.id].level]:
            yield f"the flag {levels[0]} has another level than it is raised with"
        exact = record.worst_case.value == 0 or not _largest(record.threat.eps)
        if record.controls is not None and not exact:
            due |= {f.id for f in from_controls(record.controls)}
        due |= {f.id for f in from_ties(record.ties, record.images)} if record.members else set()
        if any(m.failed for m in record.members) and not raised & {"attack-failed", "attack-invalid"}:
            due.add("attack-failed")
    if missing := sorted(due - raised):
        yield f"the flag {missing[0]} is missing, which follows from the record's own numbers"


def _largest(eps: float | tuple[float, ...]) -> float:
    return max(eps, default=0.0) if isinstance(eps, tuple) else eps


def _verdict(record: AuditRecord) -> Iterator[str]:
    """The verdict is a function of accuracy, suite, masking and errors."""
    errors = [e for e in record.errors if e != "not-reproduced"]
    if record.merged_from:
        due = verdict_of(record.merged_from, record.worst_case, record.errors)
    else:
        suite = f"{record.suite.version}, {record.suite.effort}"
        due = findings.conclusion(
            record.worst_case, errors, suite, record.masking, record.random_model, bool(record.members)
        )
        if "not-reproduced" in record.errors:
            due = f"Not reliable (not-reproduced): {due}"
    if not re.search(rf"(?<![\d.]){100 * record.worst_case.value:.1f} %", record.verdict):
        yield "the verdict has another number than the record's worst case"
    elif record.verdict != due and (record.suite.version == VERSION or record.merged_from):
        yield f"the verdict is another than the record's own numbers say: {due}"
    if bool(record.errors) != record.verdict.startswith("Not reliable"):
        yield "the verdict and the flags do not agree on whether the record is reliable"
