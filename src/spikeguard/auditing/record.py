"""What is written down of an attack or an audit."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from spikeguard.auditing import findings
from spikeguard.auditing.flags import Flag, flag
from spikeguard.auditing.run import Task
from spikeguard.auditing.scoring import CHOOSE_DRAWS, SCORE_DRAWS
from spikeguard.auditing.state import State, digest
from spikeguard.auditing.suite import VERSION
from spikeguard.auditing.witnesses import Witnesses
from spikeguard.models import Model
from spikeguard.records.files import SCHEMA, plain, write_json
from spikeguard.runtime.machine import machine


def save(entry: dict[str, Any], witnesses: Witnesses, path: Path) -> dict[str, Any]:
    """Write a record to ``path`` and the witnesses beside it; returns the record as written."""
    beside = path.with_suffix(".witnesses.npz")
    entry = {**entry, "witnesses": {"file": beside.name, "sha256": witnesses.save(beside)}}
    write_json(path, entry)
    return entry


def weights(model: Model) -> str:
    """A digest of the model's tensors, or the name of a callable that has none."""
    if isinstance(model, nn.Module):
        return digest(*model.state_dict().values())
    return getattr(model, "__qualname__", type(model).__name__)


def description(model: Model) -> str:
    """A digest of how a module prints itself: its layers, their neurons and noise.

    Another version of torch may print the same one otherwise.
    """
    printed = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model)) if isinstance(model, nn.Module) else ""
    return sha256(printed.encode()).hexdigest()[:16]


def confirmed(entry: dict[str, Any], checked: dict[str, Any]) -> dict[str, Any]:
    """The record with what a fresh process said of it (``held``, ``witnesses``, ``wrong``).

    If it does not hold, it is not reliable.
    """
    entry = {**entry, "verified_in_fresh_process": checked}
    if checked["held"]:
        return entry
    raised = flag("not-reproduced", f"({'; '.join(checked['wrong'])})", **checked)
    return {
        **entry,
        "flags": [plain(raised), *entry["flags"]],
        "verdict": f"Not reliable (not-reproduced): {entry['verdict']}",
    }


def attack_record(task: Task, state: State, about: dict[str, Any]) -> dict[str, Any]:
    """The record of a single attack; ``about`` says what was attacked, and how."""
    n, raised = len(task.x), [flag("random-without-eot")] if task.random and task.draws == 1 else []
    return {
        "schema": SCHEMA,
        "kind": "attack",
        **about,
        **common(task, n),
        "clean": findings.told(float(state.clean.double().mean()), n),
        "worst_case": findings.told(float(state.right.double().mean()), n),
        "flags": plain(raised),
        "failed": state.failed,
        "digests": {
            "images": digest(task.x, task.y),
            "model": weights(task.model),
            "described": description(task.model),
        },
        "first": state.first.tolist(),
        "right": [round(v, 4) for v in state.right.tolist()],
        "index": task.numbers.tolist(),
        "cost": state.cost,
        "machine": machine(),
    }


def common(task: Task, n: int) -> dict[str, Any]:
    """What every record says."""
    eps = task.threat.eps
    by_draws = (
        f"mean share of {SCORE_DRAWS} fresh draws ({CHOOSE_DRAWS} others chose, and tell of single members)"
    )
    return {
        "threat": {task.threat.norm: eps.tolist() if isinstance(eps, Tensor) else float(eps)},
        "seed": task.seed,
        "images": n,
        "random_model": task.random,
        "batch_size": task.batch_size,
        "scored_by": by_draws if task.random else "witnesses checked again in float32 on the untouched model",
    }


def audit_record(
    task: Task,
    state: State,
    effort: str,
    conditions: dict[str, Any],
    left_out: dict[str, str],
    told: dict[str, Any],
    found: tuple[Flag, ...],
    seconds: float,
) -> dict[str, Any]:
    """The record of an audit."""
    n = len(task.x)
    robust, clean = float(state.right.double().mean()), float(state.clean.double().mean())
    worst, parts = findings.told(robust, n), findings.masking(task, state)
    suite = f"{VERSION}, {effort}"
    return {
        "schema": SCHEMA,
        "kind": "audit",
        "suite": {"version": VERSION, "effort": effort, "hash": conditions["suite"]},
        **common(task, n),
        "digests": {k: conditions[k] for k in ("images", "model", "described")},
        "clean": findings.told(clean, n),
        "worst_case": worst,
        **({"of_mean_logits": state.of_mean} if state.of_mean else {}),
        "verdict": findings.verdict(
            worst, [f.id for f in found if f.level == "error"], suite, parts, task.random
        ),
        "flags": plain(found),
        "masking": parts,
        "without_each_family": findings.without_each_family(task, state),
        "alone": {name: findings.told(total / n, n) for name, total in state.alone.items()},
        "after": dict(state.after),
        "members": findings.member_rows(task, state),
        "left_out": left_out,
        "convergence": findings.convergence(task, state),
        "controls": told,
        "first": state.first.tolist(),
        "second": state.second.tolist(),
        "right": [round(v, 4) for v in state.right.tolist()],
        "right_clean": [round(v, 4) for v in state.clean.tolist()],
        "index": task.numbers.tolist(),
        "cost": {
            k: round(sum(c[k] for c in state.cost.values()), 2) for k in ("seconds", "forwards", "backwards")
        }
        | {"all_seconds": round(seconds, 1)},
        "machine": machine(),
    }
