"""The audit: checks, a suite of attacks, controls, flags, a verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from spikeguard import attacks
from spikeguard.auditing import checks, controls, findings
from spikeguard.auditing.choice import members
from spikeguard.auditing.flags import Flag, sorted_by_level
from spikeguard.auditing.fresh_process import Place, check_in_fresh_process
from spikeguard.auditing.member import Member
from spikeguard.auditing.pace import announce
from spikeguard.auditing.raise_flags import all_flags, from_checks, from_ties
from spikeguard.auditing.record import Measured, audit_record, digests, save, with_fresh_check
from spikeguard.auditing.run import run_suite, settle
from spikeguard.auditing.second_attack import second_attack, survivors_with_gradient
from spikeguard.auditing.state import State, digest
from spikeguard.auditing.suite import EOT_DRAWS, Effort, fingerprint
from spikeguard.auditing.task import Plan, Session, Task, kept, traits
from spikeguard.auditing.witnesses import Witnesses
from spikeguard.border import measures
from spikeguard.errors import Interrupted, UserError
from spikeguard.gradients import Transfer
from spikeguard.models import Model
from spikeguard.records.files import check_writable, folder_of_results, remove_unfinished
from spikeguard.records.member_names import transfer_key
from spikeguard.records.schema import AuditRecord, Controls, MemberRow, Origin
from spikeguard.runtime.float32 import exact
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.runtime.stop import Stop
from spikeguard.runtime.untouched import leaves_untouched
from spikeguard.threat import Threat
from spikeguard.wrapping.repeatable import stateful

STATE, RECORD = "audit.state.npz", "audit.json"
CARRIES_STATE = "the model carries state from call to call"


@dataclass(frozen=True)
class Audit:
    """Result of an audit: its record and the inputs that break samples.

    Accuracies are fractions; ``robust_accuracy`` is an upper bound.

    >>> result = sg.audit(net, x, y, sg.Linf(8 / 255), effort="quick")
    >>> 0 <= result.robust_accuracy <= result.clean_accuracy <= 1
    True
    """

    record: AuditRecord
    witnesses: Witnesses

    def __repr__(self) -> str:
        r = self.record
        eps = r.threat.eps if isinstance(r.threat.eps, float) else f"{len(r.threat.eps)} values"
        robust, clean = (f"{100 * share.value:.1f} %" for share in (r.worst_case, r.clean))
        flags = f"{len(r.flags)} flags, {len(r.errors)} of them errors"
        return (
            f"Audit(robust accuracy at most {robust}, clean {clean}, {r.images} images, {r.threat.norm} eps "
            f"{eps}, {r.suite.effort}, {flags})"
        )

    @property
    def flags(self) -> tuple[Flag, ...]:
        """What the audit found about its own reliability, errors first."""
        return self.record.flags

    @property
    def robust_accuracy(self) -> float:
        return self.record.worst_case.value

    @property
    def clean_accuracy(self) -> float:
        return self.record.clean.value

    @property
    def attacks(self) -> tuple[MemberRow, ...]:
        """A row for each member of the suite."""
        return self.record.members

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        return self.record.verdict

    @property
    def reliable(self) -> bool:
        """Whether no flag has level error."""
        return not self.record.errors

    def save(self, path: str | Path) -> Path:
        """Write the record to ``path`` and the witnesses beside it; returns the path."""
        save(self.record, self.witnesses, Path(path))
        return Path(path)


@measures
@leaves_untouched
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
    origin: Origin | None = None,
) -> Audit:
    """Measure an upper bound of the robust accuracy of ``model`` by a suite of attacks.

    Args:
        model: any callable from images ``[N, C, H, W]`` in [0, 1] to logits ``[N, K]``.
        x: images; y: labels ``[N]``, int64; threat: the norm and its budget.
        effort: 'quick', 'standard', 'full', or 'autoattack' for that protocol alone.
        out: a folder for state (an interrupted audit resumes from it), record and witnesses.
        extra: further members, or other networks whose gradients are tried (transfer).
        progress: called as ``progress(stage, done, total)``; stop: an event that ends the audit.
        index: numbers of the images, which random numbers depend on.
        origin: where model and images come from. If it names a target that the command line can load, a
            fresh process checks the record in ``out``.

    Raises:
        UserError: bad input, or outputs that are no ``[N, K]``.
        Interrupted: ``stop`` was set; the state is kept in ``out``.

    A fault of the model is a flag, of level error if it makes the number worthless. A model that carries
    state from call to call is not attacked; its flag says what to write.

    >>> result = sg.audit(net, x, y, sg.Linf(8 / 255), effort="quick")
    >>> result.robust_accuracy <= result.clean_accuracy
    True
    """
    _check_settings(threat, x, batch_size)
    begun, progress = time.perf_counter(), progress or no_progress
    folder, origin = None if out is None else folder_of_results(out, "audit"), origin or Origin()
    if folder is not None:
        check_writable(folder / RECORD)  # now, not after hours of attacks
    plan = Plan(seed, batch_size or 250, EOT_DRAWS[effort])
    progress("checking the model", 0, 1)
    bare = Task(model, x, y, threat, (), index, plan)
    given = _extra_members(extra), getattr(model, "adaptive", ())
    announce(bare, members(effort, threat, traits(model, bare.random), *given)[0], progress)
    checked = checks.check_model(model, x, y, bare.random and not stateful(model, x))
    plan = replace(plan, random="noise" in checked.traits)
    found_traits = traits(model, bool(plan.random), *checked.traits)
    chosen, left_out = members(effort, threat, found_traits, *given)
    suite_hash, found = fingerprint(effort, threat.norm, bool(plan.random)), digests(model, x, y)
    conditions = {
        "suite": suite_hash,
        "effort": effort,
        "members": [m.id for m in chosen],
        "threat": [threat.norm, digest(threat.per_sample(x))],
        "seed": seed,
        "batch_size": plan.batch_size,
        **asdict(found),
    }
    if folder is not None:
        remove_unfinished(folder)
    carries_state = "state-carried-over" in checked.findings
    if carries_state:
        chosen, left_out = [], {**left_out, **dict.fromkeys((m.id for m in chosen), CARRIES_STATE)}
    session = Session(progress, (folder / STATE, conditions) if folder else None, stop)
    task = Task(model, x, y, threat, chosen, index, plan, session)
    before = checks.Snapshot.of(model, x, task.random)
    state = run_suite(task)
    control = None if carries_state else _controls(task, state, effort)
    if session.stopped:
        raise Interrupted(f"audit stopped after its controls; {kept(task)}")
    witnesses = settle(task, state)
    checks.unchanged(before, checks.Snapshot.of(model, x, task.random), checked)
    tied = findings.ties(task, state)
    flags = (
        sorted_by_level(from_checks(checked.findings))
        if control is None
        else sorted_by_level(
            [*all_flags(task, state, checked.findings, control, effort), *from_ties(tied, len(x))]
        )
    )
    seconds = state.earlier + time.perf_counter() - begun
    measured = Measured(effort, suite_hash, found, left_out, control, flags, seconds, origin, tied)
    record = audit_record(task, state, measured)
    return Audit(record if folder is None else _store(task, record, witnesses, folder), witnesses)


def _controls(task: Task, state: State, effort: Effort) -> Controls:
    """All controls of an audit, after its attacks."""
    return replace(
        controls.run_controls(task, effort),
        survivors_with_gradient=survivors_with_gradient(task, state),
        second_attack=second_attack(task, state),
    )


def _store(task: Task, record: AuditRecord, witnesses: Witnesses, folder: Path) -> AuditRecord:
    """Write record and witnesses, have a fresh process check them, and drop the state."""
    record = save(record, witnesses, folder / RECORD)
    if record.origin.target is not None and record.members:
        place = Place(task.x.device.type, torch.get_num_threads())
        check = check_in_fresh_process(folder / RECORD, record.origin, place, task.session.stop)
        if task.session.stopped:
            raise Interrupted(f"audit stopped before a fresh process had checked it; {kept(task)}")
        record = with_fresh_check(record, check)
        record.write(folder / RECORD)
    (folder / STATE).unlink(missing_ok=True)
    return record


def _check_settings(threat: Threat, x: Tensor, batch_size: int | None) -> None:
    if batch_size is not None and batch_size < 1:
        raise UserError(f"audit: batch_size = {batch_size} must be at least 1")
    if threat.allows_everything(x):
        raise UserError(
            f"audit: eps of {type(threat).__name__} allows every image of shape {tuple(x.shape[1:])}; it is "
            "in units of images in [0, 1] (bytes: divide by 255)"
        )


def _extra_members(extra: Sequence[Member | Model]) -> list[Member]:
    """Members of the user's own, and PGD-40 with the gradients of each other network."""
    rows = []
    for number, one in enumerate(extra, 1):
        if isinstance(one, Member):
            rows.append(one)
            continue
        kind = type(one).__name__
        rows.append(
            Member(
                f"pgd40-transfer{number}",
                "transfer",
                attacks.pgd,
                {"steps": 40, "restarts": 1},
                Transfer(one),
                title=f"PGD-40, gradients of network {number} ({kind})",
                key=transfer_key(number, kind),
            )
        )
    return rows
