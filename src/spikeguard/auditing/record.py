"""The record of an attack or an audit, made from its task and state."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from spikeguard.auditing import findings
from spikeguard.auditing.flags import Flag, flag
from spikeguard.auditing.scoring import CHOOSE_DRAWS, SCORE_DRAWS
from spikeguard.auditing.state import State, digest
from spikeguard.auditing.suite import VERSION
from spikeguard.auditing.task import Task
from spikeguard.auditing.witnesses import Witnesses
from spikeguard.models import Model
from spikeguard.records.plain import plain
from spikeguard.records.schema import (
    Accuracy,
    AttackRecord,
    AuditRecord,
    Budget,
    Controls,
    Cost,
    Digests,
    FreshCheck,
    Origin,
    Settings,
    SuiteId,
    Ties,
    WitnessFile,
)
from spikeguard.runtime.machine import machine
from spikeguard.threat import Threat
from spikeguard.wrapping.neurons import state_names

ABOUT = "about.json"
"""Name of the text in a file of witnesses that says what the record is about."""
R = TypeVar("R", AuditRecord, AttackRecord)


@dataclass(frozen=True)
class Measured:
    """What an audit has beside its state."""

    effort: str
    suite_hash: str
    digests: Digests
    left_out: dict[str, str]
    controls: Controls | None
    flags: tuple[Flag, ...]
    seconds: float
    origin: Origin
    ties: Ties | None = None


def save(record: R, witnesses: Witnesses, path: Path) -> R:
    """Write a record to ``path`` and the witnesses beside it; returns the record as written."""
    beside = path.with_suffix(".witnesses.npz")
    about = json.dumps(plain(identity(record)), sort_keys=True)
    record = replace(record, witnesses=WitnessFile(beside.name, witnesses.save(beside, {ABOUT: about})))
    record.write(path)
    return record


def seen_from(folder: Path, origin: Origin) -> Origin:
    """The origin with its target as seen from the folder of a record; a factory is named by its module."""
    if origin.target is None or not Path(origin.target).exists():
        return origin
    return replace(origin, beside=os.path.relpath(Path(origin.target).resolve(), folder.resolve()))


def identity(record: AuditRecord | AttackRecord) -> dict[str, object]:
    """What a record is about. Its file of witnesses says the same: neither can be taken for another."""
    origin = record.origin
    return {
        "kind": record.kind,
        "threat": [record.threat.norm, record.threat.eps],
        "digests": record.digests,
        "index": record.index,
        "seed": record.seed,
        "data": origin.data,
        "split": origin.split,
        "images": [record.images, origin.images],
        "suite": record.suite if isinstance(record, AuditRecord) else record.attack,
    }


def weights(model: Model) -> str:
    """A digest of the model's tensors, its neurons' state aside, or the name of a callable without any."""
    if isinstance(model, nn.Module):
        state = state_names(model)
        return digest(*(t for name, t in model.state_dict().items() if name not in state))
    return getattr(model, "__qualname__", type(model).__name__)


def description(model: Model) -> str:
    """A digest of how a module prints itself: its layers, their neurons and noise.

    It may differ between versions of torch.
    """
    printed = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model)) if isinstance(model, nn.Module) else ""
    return sha256(printed.encode()).hexdigest()[:16]


def digests(model: Model, x: Tensor, y: Tensor) -> Digests:
    """Digests of images and model."""
    return Digests(digest(x, y), weights(model), description(model))


def budget(threat: Threat) -> Budget:
    """A threat as it is recorded."""
    eps = threat.eps
    return Budget(threat.norm, tuple(eps.tolist()) if isinstance(eps, Tensor) else float(eps))


def with_fresh_check(record: AuditRecord, check: FreshCheck) -> AuditRecord:
    """The record with the findings of a fresh process; if it does not hold, it is flagged as not reliable."""
    if check.held:
        return replace(record, fresh_process=check)
    raised = flag(
        "not-reproduced",
        f"({'; '.join(check.wrong)})",
        held=check.held,
        witnesses=check.witnesses,
        wrong=list(check.wrong),
    )
    return replace(
        record,
        fresh_process=check,
        flags=(raised, *record.flags),
        verdict=f"Not reliable (not-reproduced): {record.verdict}",
    )


def scored_by(random: bool) -> str:
    """How accuracies are measured, in words."""
    if random:
        return (
            f"mean share of {SCORE_DRAWS} fresh draws ({CHOOSE_DRAWS} others choose inputs and score single "
            "members)"
        )
    return "witnesses checked again in float32 on the untouched model"


def attack_record(task: Task, state: State, attack: str, settings: Settings, origin: Origin) -> AttackRecord:
    """The record of a single attack. ``attack``: its name; ``settings``: as the user gave them."""
    n, budgeted = len(task.x), float(task.threat.per_sample(task.x).max()) > 0
    single = task.random and task.plan.eot_draws == 1 and budgeted
    (cost,) = state.cost.values() if state.cost else ({},)
    return AttackRecord(
        attack=attack,
        settings=settings,
        threat=budget(task.threat),
        seed=task.seed,
        images=n,
        random_model=task.random,
        scored_by=scored_by(task.random),
        clean=Accuracy.of(float(state.clean.double().mean()), n),
        worst_case=Accuracy.of(float(state.right.double().mean()), n),
        first_by=tuple(state.first_by.tolist()),
        machine=machine(),
        right=_rounded(state.right),
        origin=origin,
        batch_size=task.batch_size,
        digests=digests(task.model, task.x, task.y),
        flags=(flag("random-without-eot"),) if single else (),
        index=tuple(task.sample_ids.tolist()),
        cost=_cost([cost]),
    )


def _rounded(shares: Tensor) -> tuple[float, ...]:
    return tuple(round(v, 4) for v in shares.tolist())


def _cost(rows: Sequence[dict[str, float]], total_seconds: float | None = None) -> Cost:
    seconds, forwards, backwards = (
        sum(row.get(k, 0) for row in rows) for k in ("seconds", "forwards", "backwards")
    )
    return Cost(round(seconds, 2), int(forwards), int(backwards), total_seconds)


def audit_record(task: Task, state: State, measured: Measured) -> AuditRecord:
    """The record of an audit."""
    n, parts = len(task.x), findings.masking(task, state)
    worst = Accuracy.of(float(state.right.double().mean()), n)
    errors = [f.id for f in measured.flags if f.level == "error"]
    suite = f"{VERSION}, {measured.effort}"
    return AuditRecord(
        suite=SuiteId(VERSION, measured.effort, measured.suite_hash),
        threat=budget(task.threat),
        seed=task.seed,
        images=n,
        random_model=task.random,
        scored_by=scored_by(task.random),
        clean=Accuracy.of(float(state.clean.double().mean()), n),
        worst_case=worst,
        verdict=findings.conclusion(worst, errors, suite, parts, task.random, bool(task.members)),
        members=findings.member_rows(task, state),
        first_by=tuple(state.first_by.tolist()),
        right=_rounded(state.right),
        machine=machine(),
        origin=measured.origin,
        batch_size=task.batch_size,
        digests=measured.digests,
        flags=measured.flags,
        masking=parts,
        mean_logits=state.mean_logits,
        without_family=findings.without_each_family(task, state),
        left_out=measured.left_out,
        convergence=findings.convergence(task, state),
        controls=measured.controls,
        ties=measured.ties,
        second_by=tuple(state.second_by.tolist()),
        right_clean=_rounded(state.clean),
        index=tuple(task.sample_ids.tolist()),
        cost=_cost(list(state.cost.values()), round(measured.seconds, 1)),
    )
