"""Checking a record against the model it speaks of: every witness read back, its budget and range looked at, one forward pass each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeguard.auditing.audit import weights
from spikeguard.auditing.state import digest
from spikeguard.auditing.witness import Witnesses, misclassified
from spikeguard.errors import AttackError, UserError
from spikeguard.gradients import Model
from spikeguard.kernels.exact import exact
from spikeguard.threat import THREATS, Threat


@dataclass(frozen=True)
class Verified:
    """``held`` of ``claimed`` witnesses break their sample on this model; ``wrong`` says what does not fit, in one line each."""

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


@exact()
def verify(record: dict[str, Any], folder: Path, model: Model, x: Tensor, y: Tensor) -> Verified:
    """Check the record's witnesses (beside it, in ``folder``) on ``model`` and the images ``x`` ``[N, C, H, W]`` that it was made with."""
    wrong: list[str] = []
    if record.get("kind") not in ("audit", "attack") or "first" not in record:
        raise UserError(f"a record of kind {record.get('kind')!r} has no witnesses (audit and attack have)")
    if len(x) != len(record["first"]):
        raise UserError(f"the record speaks of {len(record['first'])} images, {len(x)} were given")
    told = record.get("digests", {})
    if told and told["images"] != digest(x, y):
        wrong.append("the images or labels are not those of the record")
    if told and told["model"] != weights(model):
        wrong.append("the model's tensors are not those of the record")
    claims = {k for k, first in enumerate(record["first"]) if first >= 0}
    right = ~misclassified(model, x, y)
    if abs(float(right.float().mean()) - record["clean"]["accuracy"]) > 1e-6 and not record["random_model"]:
        wrong.append(f"clean accuracy is {100 * float(right.float().mean()):.2f} %, the record says {100 * record['clean']['accuracy']:.2f} %")
    if record["random_model"]:
        wrong.append("the model is random: its candidates are no witnesses; run the audit again with the same seed")
        return Verified(0, 0, float(right.float().mean()), tuple(wrong))
    beside = record.get("witnesses")
    if beside is None:
        raise UserError("the record names no file of witnesses")
    rows, found = Witnesses.load(folder / str(beside["file"])).read(x, threat := threat_of(record))
    if {int(r) for r in rows} != claims:
        wrong.append(f"{len(claims)} samples are told broken, the file holds witnesses of {len(rows)}")
    try:
        threat.take(rows).check(found, x[rows])
    except AttackError as error:
        wrong.append(str(error))
    held = misclassified(model, found, y[rows], record.get("batch_size", 0))
    if int(held.sum()) < len(rows):
        wrong.append(f"{len(rows) - int(held.sum())} of {len(rows)} witnesses do not break their sample")
    return Verified(len(claims), int(held.sum()), float(right.float().mean()), tuple(wrong))
