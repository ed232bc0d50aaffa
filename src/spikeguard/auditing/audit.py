"""The audit: checks, a suite of attacks, controls, flags, a verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from spikeguard import attacks
from spikeguard.auditing import checks, controls, findings, flags
from spikeguard.auditing import run as runner
from spikeguard.auditing.flags import Flag, flag
from spikeguard.auditing.record import audit_record, description, save, weights
from spikeguard.auditing.run import Task
from spikeguard.auditing.state import State, digest
from spikeguard.auditing.suite import EFFORTS, EOT_DRAWS, Effort, Member, fingerprint, members
from spikeguard.auditing.witnesses import Witnesses
from spikeguard.errors import UserError
from spikeguard.gradients import Transfer
from spikeguard.models import Model
from spikeguard.runtime.float32 import exact
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.runtime.stop import Stop
from spikeguard.threat import THREATS, Threat, check_images

STATE, RECORD = "audit.state.npz", "audit.json"


@dataclass(frozen=True)
class Audit:
    """Result of an audit. Accuracies are fractions; ``robust_accuracy`` is an upper bound. ``record``.

    All of it, as it is written.
    """

    record: dict[str, Any]
    flags: tuple[Flag, ...]
    witnesses: Witnesses

    @property
    def robust_accuracy(self) -> float:
        return float(self.record["worst_case"]["accuracy"])

    @property
    def clean_accuracy(self) -> float:
        return float(self.record["clean"]["accuracy"])

    @property
    def attacks(self) -> list[dict[str, Any]]:
        """A row a member of the suite."""
        return list(self.record["members"])

    @property
    def verdict(self) -> str:
        return str(self.record["verdict"])

    @property
    def reliable(self) -> bool:
        """No flag of level error."""
        return all(f.level != "error" for f in self.flags)

    def save(self, path: str | Path) -> Path:
        """Write the record to ``path`` and the witnesses beside it; returns the path."""
        save(self.record, self.witnesses, Path(path))
        return Path(path)


@exact()
def audit(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    effort: Effort = "standard",
    seed: int = 0,
    batch_size: int | None = None,
    out: str | Path | None = None,
    extra: Sequence[Member | Model] = (),
    progress: Progress | None = None,
    index: Tensor | None = None,
    stop: Stop | None = None,
) -> Audit:
    """The harshest fair judgement of ``model``, any callable from images ``[N, C, H, W]`` in [0, 1] to logits
    ``[N, K]``, with labels ``y`` ``[N]``.

    ``effort``: 'quick', 'standard', 'full', or 'autoattack' for that protocol alone. ``extra``: further
    members, or other networks whose gradients are tried (transfer). ``out``: a folder; state is kept there
    while it runs (an interrupted audit goes on from it), record and witnesses at the end. ``progress(stage,
    done, total)``. A fault of the model is a flag, of level error where the number is worth nothing by it.
    UserError on bad input and on answers that are no ``[N, classes]``, Interrupted after ``stop``.
    """
    check_images(x, y)
    _check_settings(model, threat, effort, batch_size, extra)
    begun, tell = time.perf_counter(), progress or no_progress
    folder = None if out is None else Path(out)
    bare = Task(model, x, y, threat, (), seed, index, batch_size or 250, tell=tell)
    tell("looking at the model", 0, 1)
    checked = checks.look(model, x, y, bare.random and not checks.stateful(model, x))
    random = "noise" in checked.traits
    chosen, left_out = members(
        effort,
        threat,
        runner.traits(model, random, *checked.traits),
        _extra(extra),
        getattr(model, "adaptive", ()),
    )
    conditions = {
        "suite": fingerprint(effort, threat.norm, random),
        "effort": effort,
        "members": [m.name for m in chosen],
        "threat": [threat.norm, digest(threat.per_sample(x))],
        "seed": seed,
        "batch_size": batch_size or 250,
        "images": digest(x, y),
        "model": weights(model),
        "described": description(model),
    }
    store = (folder / STATE, conditions) if folder else None
    task = Task(
        model,
        x,
        y,
        threat,
        chosen,
        seed,
        index,
        batch_size or 250,
        EOT_DRAWS[effort],
        tell,
        store,
        stop,
        random,
    )
    before = checks.contents(model)
    state = runner.run(task)
    told = controls.run(task, effort)
    told["survivors with a gradient"] = controls.survivors_with_gradient(task, state)
    told["second look"] = controls.second_look(task, state)
    witnesses = runner.settle(task, state)
    checks.unchanged(model, before, checked)
    found = _flags(task, state, checked.findings, told, effort)
    entry = audit_record(
        task, state, effort, conditions, left_out, told, found, state.earlier + time.perf_counter() - begun
    )
    result = Audit(entry, found, witnesses)
    if folder:
        result.save(folder / RECORD)
        (folder / STATE).unlink(missing_ok=True)
    return result


def _check_settings(
    model: Model, threat: Threat, effort: str, batch_size: int | None, extra: Sequence[object]
) -> None:
    if not callable(model):
        raise UserError(
            f"audit: {type(model).__name__} is not callable; pass a function from images to logits"
        )
    if effort not in EFFORTS:
        raise UserError(f"audit: unknown effort {effort!r} (known: {', '.join(EFFORTS)})")
    if not isinstance(threat, Threat):
        raise UserError(
            f"audit: threat is a {type(threat).__name__}, must be one of "
            f"{', '.join(t.__name__ for t in THREATS.values())}"
        )
    if batch_size is not None and batch_size < 1:
        raise UserError(f"audit: batch_size = {batch_size} must be at least 1")
    for one in extra:
        if not isinstance(one, Member) and not callable(one):
            raise UserError(
                f"audit: extra holds a {type(one).__name__}; pass members of a suite, or networks to "
                "transfer from"
            )


def _extra(extra: Sequence[Member | Model]) -> list[Member]:
    rows = []
    for number, one in enumerate(extra):
        if isinstance(one, Member):
            rows.append(one)
        else:
            name = f"PGD-40 through network {number + 1} ({type(one).__name__})"
            rows.append(Member(name, "transfer", attacks.pgd, {"steps": 40, "restarts": 1}, Transfer(one)))
    return rows


def _flags(
    task: Task, state: State, checked: dict[str, dict[str, Any]], told: dict[str, Any], effort: str
) -> tuple[Flag, ...]:
    n, raised = len(task.x), flags.from_checks(checked) + flags.from_controls(told)
    gradients = told["survivors with a gradient"]
    if gradients and max(gradients.values()) <= 0.05:
        raised.append(flag("no-gradient", shares=gradients))
    second = told["second look"]
    if (
        second.get("left by the second look", 0) >= controls.ENOUGH
        and second["lower bound of the share"] > 0.002
    ):
        raised.append(
            flag("black-box-beats-white-box", f"({second['left by the second look']} images)", **second)
        )
    elif second["by black box only"]:
        raised.append(flag("black-box-first", f"({second['by black box only']} images)", **second))
    if task.members and len(state.failed) == len(task.members):
        raised.append(flag("nothing-ran", f"({next(iter(state.failed.values()))})"))
    for why in dict.fromkeys(state.failed.values()):
        names = [name for name, reason in state.failed.items() if reason == why]
        invalid = "left its budget" in why or "returned values" in why
        raised.append(
            flag(
                "attack-invalid" if invalid else "attack-failed",
                f"({', '.join(names)}: {why})",
                members=names,
            )
        )
    if (lost := sum(state.unconfirmed.values())) > max(3, 0.01 * n):
        raised.append(flag("witness-lost", f"({lost})", **state.unconfirmed))
    parts = findings.masking(task, state)
    if parts and (gap := parts["PGD-20"] - parts["worst case"]) > 0.05:
        raised.append(flag("masking", f"({100 * gap:.1f} points)", **parts))
    curve = findings.convergence(task, state)
    if curve and curve["last doubling"] > 0.005:
        raised.append(
            flag("not-converged", f"({100 * curve['last doubling']:.1f} points, {curve['member']})", **curve)
        )
    clean = float(state.clean.mean())
    if clean < 2.0 / (int(task.y.max()) + 1):
        raised.append(flag("clean-accuracy-low", f"({100 * clean:.1f} %)", clean=clean))
    moved, eps = task.threat.length(state.found - task.x), task.threat.per_sample(task.x).flatten()
    if float(eps.max()) > 0 and bool((moved < 0.5 * eps).all()):
        raised.append(flag("budget-unused", largest_share=float((moved / eps.clamp(min=1e-12)).max())))
    if n < min(EFFORTS[effort] or 1000, 200):
        raised.append(flag("few-images", f"({n} images)", images=n))
    if task.random:
        raised.append(flag("random-model"))
    return flags.sorted_by_level(raised)
