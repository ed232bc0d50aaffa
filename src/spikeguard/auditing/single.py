"""One attack on a network, judged as a member of an audit is: witnesses, a record, a state to resume from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from spikeguard.attacks import ATTACKS
from spikeguard.auditing.member import OWN, Member
from spikeguard.auditing.record import attack_record, save, weights
from spikeguard.auditing.run import run_suite, settle
from spikeguard.auditing.state import digest
from spikeguard.auditing.task import Plan, Session, Task, kept
from spikeguard.data.images import Images
from spikeguard.errors import Interrupted, UserError
from spikeguard.gradients import SwapSurrogate
from spikeguard.models import Model
from spikeguard.records.schema import AttackRecord, Origin, Settings
from spikeguard.runtime.float32 import exact
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.runtime.stop import Stop
from spikeguard.threat import Threat
from spikeguard.training.settings import surrogate_of


@dataclass(frozen=True)
class SingleAttack:
    """An attack by its name in ``ATTACKS``, its settings as a user gave them, and the member that runs it."""

    attack: str
    settings: Settings
    member: Member
    threat: Threat
    plan: Plan = field(default_factory=Plan)


def single_member(attack: str, settings: Settings, name: str | None = None) -> Member:
    """The member that runs an attack on every image. ``settings`` as records have them: 'surrogate' and 'eot'
    are no arguments of the attack; what is None is left out. ``name``: None makes one of the settings.
    """
    made = " ".join([attack, *(f"{k}={v}" for k, v in settings.items() if v is not None)])
    surrogate = settings.get("surrogate")
    gradient = None if surrogate is None else SwapSurrogate(surrogate_of(str(surrogate)))
    keywords = {k: v for k, v in settings.items() if k not in ("surrogate", "eot") and v is not None}
    return Member(name or made, OWN, ATTACKS[attack].function, keywords, gradient, all=True)


def state_file(out: Path) -> Path:
    """Where an interrupted attack keeps its state."""
    return out.with_suffix(".state.npz")


@exact()
def run_single(
    what: SingleAttack,
    model: Model,
    images: Images,
    out: Path,
    origin: Origin,
    progress: Progress = no_progress,
    stop: Stop | None = None,
) -> AttackRecord:
    """Attack the images, or go on with an interrupted attack; the record, as written to ``out``.

    Raises:
        UserError: the attack fails on this model.
        Interrupted: after ``stop``; the state is kept.
    """
    x, y, plan = images.pixels(), images.y, what.plan
    conditions = _conditions(what, model, x, y)
    session = Session(progress, (state_file(out), conditions), stop)
    task = Task(model, x, y, what.threat, [what.member], images.index, plan, session)
    state = run_suite(task)
    witnesses = settle(task, state)
    if session.stopped:
        raise Interrupted(f"attack stopped at its end; {kept(task)}")
    if what.member.id in state.failed:
        state_file(out).unlink(missing_ok=True)
        raise UserError(f"attack: {state.failed[what.member.id]}")
    record = attack_record(task, state, what.attack, dict(what.settings), origin)
    entry = save(record, witnesses, out)
    state_file(out).unlink(missing_ok=True)
    return entry


def _conditions(what: SingleAttack, model: Model, x: Tensor, y: Tensor) -> dict[str, object]:
    """What a stored state has to agree with."""
    return {
        "attack": what.member.id,
        "threat": [what.threat.norm, what.threat.eps],
        "seed": what.plan.seed,
        "eot": what.plan.eot_draws,
        "batch_size": what.plan.batch_size,
        "images": digest(x, y),
        "model": weights(model),
    }
