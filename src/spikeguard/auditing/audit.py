"""The audit: checks, a suite of attacks, controls, flags, a verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from spikeguard import attacks
from spikeguard.auditing import checks, controls
from spikeguard.auditing.flags import Flag
from spikeguard.auditing.fresh_process import Place, check_in_fresh_process
from spikeguard.auditing.raise_flags import all_flags
from spikeguard.auditing.record import Measured, audit_record, digests, save, with_fresh_check
from spikeguard.auditing.run import Plan, Session, Task, kept, run_suite, settle, traits
from spikeguard.auditing.state import digest
from spikeguard.auditing.suite import EOT_DRAWS, Effort, Member, fingerprint, members
from spikeguard.auditing.witnesses import Witnesses
from spikeguard.border import measures
from spikeguard.errors import Interrupted, UserError
from spikeguard.gradients import Transfer
from spikeguard.models import Model
from spikeguard.records.files import check_writable, folder_of_results, remove_unfinished
from spikeguard.records.member_names import transfer_key
from spikeguard.records.schema import AuditRecord, MemberRow, Origin
from spikeguard.runtime.float32 import exact
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.runtime.stop import Stop
from spikeguard.runtime.untouched import leaves_untouched
from spikeguard.threat import Threat

STATE, RECORD = "audit.state.npz", "audit.json"


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

    A fault of the model is a flag, of level error if it makes the number worthless.

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
    checked = checks.check_model(model, x, y, bare.random and not checks.stateful(model, x))
    plan = replace(plan, random="noise" in checked.traits)
    chosen, left_out = members(
        effort,
        threat,
        traits(model, bool(plan.random), *checked.traits),
        _extra_members(extra),
        getattr(model, "adaptive", ()),
    )
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
    session = Session(progress, (folder / STATE, conditions) if folder else None, stop)
    task = Task(model, x, y, threat, chosen, index, plan, session)
    before = checks.Snapshot.of(model, x, task.random)
    state = run_suite(task)
    control = replace(
        controls.run_controls(task, effort),
        survivors_with_gradient=controls.survivors_with_gradient(task, state),
        second_attack=controls.second_attack(task, state),
    )
    if session.stopped:
        raise Interrupted(f"audit stopped after its controls; {kept(task)}")
    witnesses = settle(task, state)
    checks.unchanged(before, checks.Snapshot.of(model, x, task.random), checked)
    flags = all_flags(task, state, checked.findings, control, effort)
    seconds = state.earlier + time.perf_counter() - begun
    measured = Measured(effort, suite_hash, found, left_out, control, flags, seconds, origin)
    record = audit_record(task, state, measured)
    return Audit(record if folder is None else _store(task, record, witnesses, folder), witnesses)


def _store(task: Task, record: AuditRecord, witnesses: Witnesses, folder: Path) -> AuditRecord:
    """Write record and witnesses, have a fresh process check them, and drop the state."""
    record = save(record, witnesses, folder / RECORD)
    if record.origin.target is not None:
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
