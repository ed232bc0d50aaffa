"""Check a record against its model: every witness read back, its budget and range, one forward pass each, and
what the record concludes from them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from spikeguard.auditing.consistency import inconsistencies
from spikeguard.auditing.record import ABOUT, description, identity, weights
from spikeguard.auditing.run import rescored
from spikeguard.auditing.scoring import SCORE_DRAWS
from spikeguard.auditing.state import CLEAN_WRONG, digest
from spikeguard.auditing.witnesses import Witnesses, misclassified, witness_file
from spikeguard.border import measures
from spikeguard.errors import AttackError, UserError
from spikeguard.models import Model
from spikeguard.records.arrays import read_note
from spikeguard.records.base import Record
from spikeguard.records.build import table
from spikeguard.records.plain import plain
from spikeguard.records.schema import AttackRecord, AuditRecord
from spikeguard.runtime.float32 import exact
from spikeguard.threat import THREATS, Threat

Checkable = AuditRecord | AttackRecord
OFTEN = 0.2
"""Share of 100 draws at which an image cannot be one where none of 25 draws was right."""
TOLERANCE = 0.02
"""Of the accuracy of a random model, whose own generators may differ from machine to machine."""


@dataclass(frozen=True)
class Verified:
    """``held`` of ``claimed`` witnesses break their sample on this model; ``wrong``: what does not hold, one
    line each.

    A random model has an input for every image; it holds if the image is right no more often than the record
    says, within sampling error.

    >>> result = sg.audit(net, x, y, sg.Linf(8 / 255), effort="quick", out="audit")
    >>> check = sg.verify(result.record, "audit", net, x, y)
    >>> check.held == check.claimed
    True
    """

    claimed: int
    held: int
    clean_accuracy: float
    wrong: tuple[str, ...]


@dataclass
class _Check:
    """A record with the model and images to check it on; ``wrong`` collects what does not hold."""

    record: Checkable
    model: Model
    x: Tensor
    y: Tensor
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Scores:
    """What the model gives on the record's images: accuracies, and witnesses that hold, of all."""

    clean: float
    robust: float
    held: int
    claimed: int


def threat_of(record: Checkable) -> Threat:
    """The threat of a record; UserError if its norm is unknown."""
    budget = record.threat
    if budget.norm not in THREATS:
        raise UserError(f"the record names no known threat ({budget.norm!r}; known: {', '.join(THREATS)})")
    eps = budget.eps
    many = torch.tensor(eps, dtype=torch.float64, device="cpu") if isinstance(eps, tuple) else eps
    return THREATS[budget.norm](many)


def checkable(record: Record) -> Checkable:
    """The record, if it is of a kind that has witnesses; else UserError."""
    if not isinstance(record, (AuditRecord, AttackRecord)):
        raise UserError(f"a record of kind {record.kind!r} has no witnesses (audit and attack have)")
    if record.witnesses is None:
        raise UserError("the record names no file of witnesses: merge its parts again, or verify these")
    return record


@measures
@exact()
def verify(record: Checkable, folder: str | Path, model: Model, x: Tensor, y: Tensor) -> Verified:
    """Check the witnesses of a record, in a file in ``folder``, on ``model`` and the attacked images.

    Args:
        record: of an audit or an attack; merged records, too.
        x: the images that the record is about, ``[N, C, H, W]``; y: labels ``[N]``.

    Raises:
        UserError: a record without witnesses, another number of images, a damaged file.

    >>> result = sg.audit(net, x, y, sg.Linf(8 / 255), effort="quick", out="audit")
    >>> sg.verify(result.record, "audit", net, x, y).wrong
    ()
    """
    check = _Check(record, model, x, y)
    checkable(record)
    if len(x) != len(record.first_by):
        raise UserError(f"the record is about {len(record.first_by)} images, {len(x)} were given")
    _check_digests(check)
    rows, found = _read_witnesses(check, Path(folder))
    scores = (_random if record.random_model else _deterministic)(check, rows, found)
    _check_numbers(check, scores)
    check.wrong += [line for line in inconsistencies(record) if line not in check.wrong]
    return Verified(scores.claimed, scores.held, scores.clean, tuple(check.wrong))


def _check_digests(check: _Check) -> None:
    known = check.record.digests
    if known is None:
        check.wrong.append("the record has no digests of its images and its model")
        return
    if known.images != digest(check.x, check.y):
        check.wrong.append("the images or labels are not those of the record")
    if known.model != weights(check.model):
        check.wrong.append("the model's tensors are not those of the record")
    elif known.described not in (None, description(check.model)):
        check.wrong.append(
            "the model has the record's tensors, but prints itself in another way: other neurons, other "
            "noise, or another version of torch"
        )


def _read_witnesses(check: _Check, folder: Path) -> tuple[Tensor, Tensor]:
    beside = check.record.witnesses
    assert beside is not None
    file = witness_file(folder, beside)
    stored = Witnesses.load(file, len(check.x))
    if sha256(file.read_bytes()).hexdigest() != beside.sha256:
        check.wrong.append("the file of witnesses is not the one that the record was written with")
    check.wrong += _check_identity(check.record, file)
    threat = threat_of(check.record)
    rows, found = stored.read(check.x, threat)
    try:
        threat.select(rows).check(found, check.x[rows])
    except AttackError as error:
        check.wrong.append(str(error))
    return rows, found


def _check_identity(record: Checkable, file: Path) -> list[str]:
    """What the record says it is about against what the file of witnesses says; older files say nothing."""
    text = read_note(file, ABOUT)
    if text is None:
        return []
    try:
        held = table(json.loads(text), ABOUT)
    except (ValueError, RecursionError) as error:
        return [f"the file of witnesses is damaged ({error})"]
    due = plain(identity(record))
    return [
        f"the record is about another {name} than its witnesses: {due.get(name)}, not {held.get(name)}"
        for name in sorted({*due, *held})
        if due.get(name) != held.get(name)
    ]


def _check_numbers(check: _Check, scores: _Scores) -> None:
    record = check.record
    parts = len(record.merged_from) if isinstance(record, AuditRecord) else 0
    # the least of several noisy shares lies lower than a share that is measured again
    allowed = TOLERANCE * max(parts, 1) if record.random_model else 1e-6
    rows = (("clean", scores.clean, record.clean), ("worst_case", scores.robust, record.worst_case))
    for name, share, recorded in rows:
        if abs(share - recorded.value) > allowed:
            check.wrong.append(
                f"{name} accuracy is {100 * share:.2f} %, the record says {100 * recorded.value:.2f} %"
            )


def _deterministic(check: _Check, rows: Tensor, found: Tensor) -> _Scores:
    record, x, y = check.record, check.x, check.y
    first = torch.tensor(record.first_by, device=x.device)
    right = ~misclassified(check.model, x, y)
    if other := int((right != (first != CLEAN_WRONG)).sum()):
        check.wrong.append(
            f"{other} images are recorded as wrong without attack and are right, or the other way round"
        )
    claims = set(torch.nonzero(first >= 0).flatten().tolist())
    if {int(r) for r in rows} != claims:
        check.wrong.append(
            f"{len(claims)} samples are recorded as broken, the file holds witnesses of {len(rows)}"
        )
    held = misclassified(check.model, found, y[rows], record.batch_size or 0)
    if int(held.sum()) < len(rows):
        check.wrong.append(
            f"{len(rows) - int(held.sum())} of {len(rows)} witnesses do not break their sample"
        )
    left = right.clone()
    left[rows[held]] = False
    return _Scores(float(right.double().mean()), float(left.double().mean()), int(held.sum()), len(claims))


def _random(check: _Check, rows: Tensor, found: Tensor) -> _Scores:
    record, x = check.record, check.x
    if rows.tolist() != list(range(len(x))):
        check.wrong.append(
            f"a random model is scored at one input for each of {len(x)} images, the file holds {len(rows)}"
        )
        return _Scores(record.clean.value, record.worst_case.value, 0, len(x))
    (clean, _), (right, _) = rescored(
        check.model, x, found, check.y, record.seed or 0, record.batch_size or 250
    )
    never = torch.tensor(record.first_by, device=x.device) == CLEAN_WRONG
    if known := int((never & (clean > OFTEN)).sum()):
        check.wrong.append(f"{known} images are recorded as wrong without attack and are right in many draws")
    right[never] = 0.0
    recorded = torch.tensor(record.right, dtype=right.dtype, device=right.device)
    pooled = (right + recorded) / 2
    # four standard errors of two samples of as many draws: one in 30,000 by chance
    more = right > recorded + 4 * (2 * pooled * (1 - pooled) / SCORE_DRAWS).sqrt()
    if int(more.sum()):
        check.wrong.append(f"{int(more.sum())} of {len(x)} inputs are right more often than recorded")
    return _Scores(float(clean.double().mean()), float(right.double().mean()), int((~more).sum()), len(x))
