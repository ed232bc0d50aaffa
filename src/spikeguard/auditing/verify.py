"""Checking a record against the model it speaks of: every witness read back, its budget and range looked at,
one forward pass each; and what the record concludes from them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeguard.auditing.record import description, weights
from spikeguard.auditing.run import rescored
from spikeguard.auditing.scoring import SCORE_DRAWS
from spikeguard.auditing.state import CLEAN_WRONG, digest
from spikeguard.auditing.witnesses import Witnesses, misclassified
from spikeguard.errors import AttackError, UserError
from spikeguard.models import Model
from spikeguard.runtime.float32 import exact
from spikeguard.threat import THREATS, Threat

OFTEN = 0.2  # of 100 draws, where none of 25 was right
TOLERATED = 0.02  # of the accuracy of a random model, whose own generators may differ from machine to machine


@dataclass(frozen=True)
class Verified:
    """``held`` of ``claimed`` witnesses break their sample on this model; ``wrong`` says what does not fit,
    in one line each.

    Of a random model every image has a candidate; one holds if it is right no more often than the record
    says, within sampling error.
    """

    claimed: int
    held: int
    clean_accuracy: float
    wrong: tuple[str, ...]


def threat_of(record: dict[str, Any]) -> Threat:
    """The threat that a record tells of."""
    try:
        ((norm, eps),) = record["threat"].items()
        return THREATS[norm](torch.tensor(eps, dtype=torch.float64) if isinstance(eps, list) else float(eps))
    except (KeyError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"the record names no known threat ({record.get('threat')!r})") from error


def checkable(record: dict[str, Any]) -> None:
    """UserError if the record is of a kind that has no witnesses."""
    if "merged_from" in record:
        raise UserError("a union has no witnesses of its own: verify the records that it was merged from")
    if record.get("kind") not in ("audit", "attack") or "first" not in record:
        raise UserError(f"a record of kind {record.get('kind')!r} has no witnesses (audit and attack have)")


@exact()
def verify(record: dict[str, Any], folder: Path, model: Model, x: Tensor, y: Tensor) -> Verified:
    """Check the record's witnesses (beside it, in ``folder``) on ``model`` and the images ``x`` ``[N, C, H.

    W]`` that it was made with.
    """
    wrong: list[str] = []
    checkable(record)
    if len(x) != len(record["first"]):
        raise UserError(f"the record speaks of {len(record['first'])} images, {len(x)} were given")
    told = record.get("digests", {})
    if told and told["images"] != digest(x, y):
        wrong.append("the images or labels are not those of the record")
    if told and told["model"] != weights(model):
        wrong.append("the model's tensors are not those of the record")
    elif told.get("described", description(model)) != description(model):
        wrong.append(
            "the model has the record's tensors, but prints itself otherwise: other neurons, other noise, "
            "or another version of torch"
        )
    beside = record.get("witnesses")
    if beside is None:
        raise UserError("the record names no file of witnesses")
    file = folder / str(beside["file"])
    stored = Witnesses.load(file)
    if sha256(file.read_bytes()).hexdigest() != beside["sha256"]:
        wrong.append("the file of witnesses is not the one that the record was written with")
    rows, found = stored.read(x, threat := threat_of(record))
    try:
        threat.select(rows).check(found, x[rows])
    except AttackError as error:
        wrong.append(str(error))
    judge = _random if record["random_model"] else _deterministic
    clean, told_right, held, claimed = judge(record, model, x, y, rows, found, wrong)
    for name, share in (("clean", clean), ("worst_case", told_right)):
        if abs(share - record[name]["accuracy"]) > (TOLERATED if record["random_model"] else 1e-6):
            wrong.append(
                f"{name} accuracy is {100 * share:.2f} %, the record says "
                f"{100 * record[name]['accuracy']:.2f} %"
            )
    if "verdict" in record and not re.search(
        rf"(?<![\d.]){100 * record['worst_case']['accuracy']:.1f} %", record["verdict"]
    ):
        wrong.append("the verdict tells another number than the record's worst case")
    if "verdict" in record and any(f["level"] == "error" for f in record["flags"]) != record[
        "verdict"
    ].startswith("Not reliable"):
        wrong.append("the verdict and the flags do not agree on whether the record is reliable")
    return Verified(claimed, held, clean, tuple(wrong))


def _deterministic(
    record: dict[str, Any], model: Model, x: Tensor, y: Tensor, rows: Tensor, found: Tensor, wrong: list[str]
) -> tuple[float, float, int, int]:
    first = torch.tensor(record["first"], device=x.device)
    right = ~misclassified(model, x, y)
    if bool((right != (first != CLEAN_WRONG)).any()):
        wrong.append(
            f"{int((right != (first != CLEAN_WRONG)).sum())} images are told wrong from the start and are "
            "right, or the other way round"
        )
    claims = set(torch.nonzero(first >= 0).flatten().tolist())
    if {int(r) for r in rows} != claims:
        wrong.append(f"{len(claims)} samples are told broken, the file holds witnesses of {len(rows)}")
    held = misclassified(model, found, y[rows], record.get("batch_size", 0))
    if int(held.sum()) < len(rows):
        wrong.append(f"{len(rows) - int(held.sum())} of {len(rows)} witnesses do not break their sample")
    left = right.clone()
    left[rows[held]] = False
    return float(right.double().mean()), float(left.double().mean()), int(held.sum()), len(claims)


def _random(
    record: dict[str, Any], model: Model, x: Tensor, y: Tensor, rows: Tensor, found: Tensor, wrong: list[str]
) -> tuple[float, float, int, int]:
    if rows.tolist() != list(range(len(x))):
        wrong.append(
            f"a random model is scored at one input for each of {len(x)} images, the file holds {len(rows)}"
        )
        return record["clean"]["accuracy"], record["worst_case"]["accuracy"], 0, len(x)
    (clean, _), (right, _) = rescored(model, x, found, y, record["seed"], record.get("batch_size", 250))
    never = torch.tensor(record["first"], device=x.device) == CLEAN_WRONG
    if known := int((never & (clean > OFTEN)).sum()):
        wrong.append(f"{known} images are told wrong from the start and are right in many draws")
    right[never] = 0.0
    told = torch.tensor(record["right"], device=right.device)
    pooled = (right + told) / 2
    more = (
        right > told + 4 * (2 * pooled * (1 - pooled) / SCORE_DRAWS).sqrt()
    )  # of two samples of as many draws; one in 30,000 by chance
    if int(more.sum()):
        wrong.append(f"{int(more.sum())} of {len(x)} candidates are right more often than told")
    return float(clean.double().mean()), float(right.double().mean()), int((~more).sum()), len(x)
