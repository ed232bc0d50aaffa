"""What the study does with one network (rank, audit in full, score), and what its numbers depend on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace

import torch

from spikeguard.auditing.member import Member
from spikeguard.auditing.suite import Effort, fingerprint
from spikeguard.data.images import Dataset, Images
from spikeguard.errors import UserError
from spikeguard.records.schema import AuditRecord
from spikeguard.records.studies import StudyRow
from spikeguard.records.training import TrainingRecord
from spikeguard.sweep.cells import (
    Cell,
    Context,
    Judgment,
    audit_cell,
    hash_of,
    machine_of,
    summary,
    train_cell,
    with_audit,
)
from spikeguard.threat import Linf
from spikeguard.training.builder import training_parts
from studies.embedded.matrix import EPS, LOW, MORE, MORE_AT_LAST, adaptive_attacks

# gradients averaged without hurrying an estimator's schedule, inputs kept on the grid
JUDGE_VERSION = "random models, second version"
DEFAULTS_OF_OLD_RECIPES: dict[str, float | str | None] = {
    "eps_end": None,
    "late_steps": None,
    "late_share": 0.3,
    "label_smoothing": 0.0,
    "schedule": "cosine",
    "average_from": 0.0,
}  # fields that older recipes lack, and what they mean there


@dataclass(frozen=True)
class Rank:
    """Train a network and audit it in short on the last ``images`` validation images.

    Early stopping chooses on the first ones.
    """

    images: int
    verb: str = "rank"

    def __call__(self, context: Context, cell: Cell, title: str) -> StudyRow:
        """The network's row; ``failed`` with the reason where the training or the audit fails."""
        row = StudyRow(cell.group, cell.row, cell.seed, fingerprint=fingerprint_of(cell))
        try:
            training = train_cell(context, cell, title)
        except UserError as error:
            return replace(row, failed=str(error))
        images = validation_images(cell, context.data, self.images)
        row = with_audit(row, audit_cell(context, cell, images, judgment("quick"), title))
        if cell.group == "BPTT":
            row = replace(row, low=summary(audit_cell(context, cell, images, judgment("quick", LOW), title)))
        return replace(
            row,
            seconds=training.cost.seconds,
            validation_accuracy=training.validation_accuracy,
            machine=machine_of(context),
        )


@dataclass(frozen=True)
class AuditInFull:
    """The longest audit, on the images that ranked the network."""

    images: int
    verb: str = "audit in full"

    def __call__(self, context: Context, cell: Cell, title: str) -> StudyRow:
        """The network's row of the full audits."""
        training = train_cell(context, cell, title)
        images = validation_images(cell, context.data, self.images)
        folder = context.out / "audits" / cell.name
        try:
            audit = audit_cell(context, cell, images, judgment("full"), title, folder)
        except UserError:  # it began on a network that was lost since, so it cannot continue
            shutil.rmtree(folder, ignore_errors=True)
            audit = audit_cell(context, cell, images, judgment("full"), title, folder)
        row = _later_row(context, cell, "full", training, audit)
        return replace(row, audit=row.audit and replace(row.audit, members=len(audit.members)))


@dataclass(frozen=True)
class Score:
    """The one audit on ``images`` test images."""

    images: int
    verb: str = "score"

    def __call__(self, context: Context, cell: Cell, title: str) -> StudyRow:
        """The network's row of the scores."""
        training = train_cell(context, cell, title)  # again, where only the record is left
        images = context.data.test.balanced(self.images)
        audit = audit_cell(context, cell, images, judgment("standard"), title)
        return _later_row(context, cell, "standard", training, audit)


def judgment(effort: Effort, eps: float = EPS) -> Judgment:
    """How the study audits with an effort: with every attack that is adaptive to any of its defenses."""
    return Judgment(Linf(eps), effort, _extra_members(effort), adaptive_attacks)


def validation_images(cell: Cell, data: Dataset, count: int) -> Images:
    """The last ``count`` validation images of a network."""
    images = training_parts(cell.recipe, data)[1]
    return images.select(torch.arange(max(0, len(images) - count), len(images)))


def _later_row(
    context: Context, cell: Cell, effort: Effort, training: TrainingRecord, audit: AuditRecord
) -> StudyRow:
    row = StudyRow(
        cell.group,
        cell.row,
        cell.seed,
        fingerprint=fingerprint_of(cell, effort),
        seconds=training.cost.seconds,
        machine=machine_of(context),
    )
    return with_audit(row, audit)


def fingerprint_of(cell: Cell, effort: Effort = "quick") -> str:
    """A hash of what a cell's numbers depend on.

    Its recipe, the suite, the extra members, the budgets, the way stochastic models are judged.
    """
    parts: list[object] = [
        without_new_fields(cell.recipe.values()),
        fingerprint(effort),
        [m.as_dict() for m in _extra_members(effort)],
        EPS,
        LOW,
    ]
    if any(d.is_random() for d in cell.recipe.defenses):
        parts.append(JUDGE_VERSION)
    return hash_of(parts)


def _extra_members(effort: Effort) -> tuple[Member, ...]:
    """The members that an audit of the study has beside the suite's."""
    return {"quick": MORE, "standard": MORE_AT_LAST}.get(effort, ())


def without_new_fields(values: object) -> object:
    """A recipe's values without the fields that older recipes lack, where they mean what held before."""
    if not isinstance(values, dict):
        return values
    return {
        k: without_new_fields(v)
        for k, v in values.items()
        if k not in DEFAULTS_OF_OLD_RECIPES or v != DEFAULTS_OF_OLD_RECIPES[k]
    }
