"""Running a suite over a set of images: in chunks by index, on the samples that no two families have broken.

Every success is checked again on the untouched model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from spikeguard.attacks import Attacked
from spikeguard.auditing.scoring import CHOOSE_DRAWS, fresh_draws, over_draws
from spikeguard.auditing.state import CLEAN_WRONG, ROBUST, Conditions, State
from spikeguard.auditing.suite import Member
from spikeguard.auditing.witnesses import Witnesses, candidates, keep, misclassified
from spikeguard.errors import Interrupted, UserError
from spikeguard.gradients.surrogate import neuron_traits
from spikeguard.losses import margin
from spikeguard.models import Model, check_logits, eval_mode, is_stochastic, logits_of
from spikeguard.random import draws
from spikeguard.records.schema import MeanLogits
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.runtime.stop import Stop
from spikeguard.threat import Threat

SAVE_EVERY = 20.0  # seconds
BROKEN = 0.02
"""A sample of a random model counts as broken where a share of draws this small is right."""
FAMILIES_NEEDED = 2


@dataclass(frozen=True)
class Plan:
    """Constants of a run. ``eot_draws``: gradients averaged in each step against a random model; ``random``:
    whether the model is random, None to find out."""

    seed: int = 0
    batch_size: int = 250
    eot_draws: int = 1
    random: bool | None = None


@dataclass(frozen=True)
class Session:
    """How a run shows its progress, where it keeps its state and under which conditions, what stops it."""

    progress: Progress = no_progress
    store: tuple[Path, Conditions] | None = None
    stop: Stop | None = None

    @property
    def stopped(self) -> bool:
        """Whether the user wants the run to end."""
        return self.stop is not None and self.stop.is_set()


@dataclass
class Task:
    """What is attacked, by which members, and how. ``index``: numbers of the samples, which their random
    numbers depend on (None: 0 to N - 1)."""

    model: Model
    x: Tensor
    y: Tensor
    threat: Threat
    members: Sequence[Member]
    index: Tensor | None = None
    plan: Plan = Plan()
    session: Session = field(default_factory=Session)

    def __post_init__(self) -> None:
        self.sample_ids = torch.arange(len(self.x)) if self.index is None else self.index
        self.families = list(dict.fromkeys(m.family for m in self.members))
        self.random = bool(self.plan.random)
        if self.plan.random is None:
            with eval_mode(self.model):
                self.random = is_stochastic(self.model, *check_logits(self.model, self.x, self.y))

    @property
    def seed(self) -> int:
        return self.plan.seed

    @property
    def batch_size(self) -> int:
        return self.plan.batch_size


def traits(model: Model, random: bool, *found: str) -> frozenset[str]:
    """Traits of a model that decide which members make sense."""
    return frozenset({*neuron_traits(model), *({"noise"} if random else set()), *found})


def begin(task: Task) -> State:
    """The state before the first attack, or the stored one."""
    store = task.session.store
    if store and store[0].exists():
        state = State.load(*store, task.x.device)
        state.check_fits(task.x, len(task.families), len(task.members), store[0])
        return state
    with eval_mode(task.model):
        if task.random:
            clean = _chosen_draws(task, task.x, task.y)
        else:
            clean = (~misclassified(task.model, task.x, task.y)).float()
        values = _margins(task, task.x, task.y)
    return State.start(task.x, clean, values, len(task.families))


def _chosen_draws(task: Task, x: Tensor, y: Tensor) -> Tensor:
    key = draws.key(task.seed, "choose")
    return fresh_draws(task.model, x, y, key, CHOOSE_DRAWS, task.batch_size)


def run_suite(task: Task, state: State | None = None) -> State:
    """Run all members in order, from where ``state`` is.

    Raises:
        Interrupted: the user stopped it; the state is stored first.
    """
    state = state or begin(task)
    chunks = torch.arange(len(task.x), device=task.x.device).split(task.batch_size)
    clock = _Clock(task, state)
    for number, member in enumerate(task.members):
        for part, chunk in enumerate(chunks):
            if (number, part) < tuple(state.done):
                continue
            # counts are of all work, so that there is one time left for all of it
            task.session.progress(
                f"{number + 1} of {len(task.members)}: {member.title}",
                number * len(chunks) + part,
                len(task.members) * len(chunks),
            )
            rows, stopped = chunk[_targets(task, state, member, chunk)], False
            try:
                if len(rows):
                    _attack(task, state, number, rows)
            except Interrupted:  # inside an attack: this chunk starts again
                stopped = True
            else:
                state.done = (number, part + 1) if part + 1 < len(chunks) else (number + 1, 0)
                stopped = task.session.stopped
            clock.save(now=stopped)
            if stopped:
                raise Interrupted(f"audit stopped at {member.title}; {kept(task)}")
        if state.done == (number + 1, 0):
            state.after[member.id] = float(state.right.double().mean())
    clock.save(now=True)
    return state


class _Clock:
    """Stores the state now and then."""

    def __init__(self, task: Task, state: State) -> None:
        self.task, self.state = task, state
        self.begun = self.saved = time.monotonic()

    def save(self, now: bool) -> None:
        store = self.task.session.store
        if store and (now or time.monotonic() - self.saved > SAVE_EVERY):
            self.state.save(*store, time.monotonic() - self.begun)
            self.saved = time.monotonic()


def kept(task: Task) -> str:
    """What an audit that stops here keeps, for its message."""
    store = task.session.store
    if store is None:
        return "nothing was kept (no folder was named)"
    return f"what was found is kept in {store[0].parent}; resume with --resume"


def _targets(task: Task, state: State, member: Member, chunk: Tensor) -> Tensor:
    """The samples of a chunk that a member attacks, ``[n]`` bool."""
    broken = state.by_family[:, chunk] <= BROKEN * (state.clean[chunk] > 0)
    mine, valid = broken[task.families.index(member.family)], state.first_by[chunk] != CLEAN_WRONG
    if member.all:
        return valid
    if member.exact:
        return valid & ~mine
    if member.warm:
        return valid & ~broken.any(0)
    return valid & ~mine & (broken.sum(0) < FAMILIES_NEEDED)


def _attack(task: Task, state: State, number: int, rows: Tensor) -> None:
    """Run one member on some rows and note what it breaks; an attack that fails is noted with its reason."""
    member = task.members[number]
    begun = time.perf_counter()
    x, threat = task.x[rows], task.threat.select(rows)
    cost = state.cost.setdefault(member.id, {"seconds": 0.0, "forwards": 0, "backwards": 0})
    try:
        with _stoppable(task):
            got = member.run(
                task.model,
                x,
                task.y[rows],
                threat,
                draws.key(task.seed, member.key),
                task.sample_ids[rows.cpu()],
                state.found[rows],
                task.plan.eot_draws if task.random else 1,
            )
        threat.check(got.x, x)
    except Interrupted:
        raise
    except Exception as error:  # the model's code may raise anything, in its own backward pass too
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        state.failed[member.id] = reason
    else:
        cost["forwards"] += got.forwards
        cost["backwards"] += got.backwards
        _note(task, state, number, rows, got)
    cost["seconds"] = round(cost["seconds"] + time.perf_counter() - begun, 3)


@contextmanager
def _stoppable(task: Task) -> Iterator[None]:
    """Let a stop end an attack at the next forward pass, for an attack may take hours."""
    stop = task.session.stop
    if stop is None or not isinstance(task.model, nn.Module):
        yield
        return

    def check_stop(*_: object) -> None:
        if stop.is_set():
            raise Interrupted("audit stopped inside an attack")

    try:
        handle = task.model.register_forward_pre_hook(check_stop)
    except RuntimeError:  # a scripted module takes no hooks: it stops after the attack
        handle = None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _note(task: Task, state: State, number: int, rows: Tensor, got: Attacked) -> None:
    """Take over what a member found for some rows, as far as it holds on the untouched model."""
    member, x, y = task.members[number], task.x[rows], task.y[rows]
    if task.random:
        with eval_mode(task.model):
            share = torch.minimum(state.clean[rows], _chosen_draws(task, got.x, y))
        confirmed = share <= BROKEN
    else:
        _, confirmed = keep(task.model, x, y, got.x, got.broken, task.threat.select(rows), task.batch_size)
        lost = int((got.broken & ~confirmed).sum())
        state.unconfirmed[member.id] = state.unconfirmed.get(member.id, 0) + lost
        share = state.clean[rows] * ~confirmed
    if member.all:
        state.alone[member.id] = state.alone.get(member.id, 0.0) + float(share.double().sum())
    with eval_mode(task.model):
        value = _margins(task, got.x, y)
    lower, standing = share < state.right[rows], state.right[rows] > BROKEN
    closer = standing & (share <= state.right[rows]) & (value > state.margin[rows])
    better = lower | closer
    state.found[rows[better]], state.margin[rows[better]] = got.x[better], value[better]
    state.right[rows] = torch.minimum(state.right[rows], share)
    family = task.families.index(member.family)
    state.by_family[family, rows] = torch.minimum(state.by_family[family, rows], share)
    _credit(task, state, number, rows, confirmed)
    if not task.random:
        _count_steps(state, member, got)


def _credit(task: Task, state: State, number: int, rows: Tensor, confirmed: Tensor) -> None:
    """Note who broke these rows first, and which other family did so first."""
    member = task.members[number]
    family = task.families.index(member.family)
    new = confirmed & (state.first_by[rows] == ROBUST)
    family_of = torch.tensor([task.families.index(m.family) for m in task.members], device=rows.device)
    first = state.first_by[rows]
    again = confirmed & ~new & (first >= 0) & (state.second_by[rows] == ROBUST)
    again &= family_of[first.clamp(min=0)] != family
    state.first_by[rows[new]], state.second_by[rows[again]] = number, number
    state.attempted[member.id] = state.attempted.get(member.id, 0) + len(rows)
    state.broken[member.id] = state.broken.get(member.id, 0) + int(confirmed.sum())


def _count_steps(state: State, member: Member, got: Attacked) -> None:
    """Add up how many samples broke at each step."""
    if not (when := got.when[got.broken]).numel() or int(when.max()) <= 0:
        return
    counts = torch.bincount(when.clamp(min=0)).tolist()
    before = state.steps.get(member.id, [])
    longer = max(len(before), len(counts))
    state.steps[member.id] = [sum(v[k] for v in (before, counts) if k < len(v)) for k in range(longer)]


def rescored(
    model: Model, x: Tensor, found: Tensor, y: Tensor, seed: int, batch_size: int
) -> list[tuple[Tensor, Tensor]]:
    """``over_draws`` of a random model at the images and at ``found``, by draws that did not choose them."""
    with eval_mode(model):
        return [over_draws(model, at, y, draws.key(seed, "score"), batch=batch_size) for at in (x, found)]


def _margins(task: Task, x: Tensor, y: Tensor) -> Tensor:
    parts = zip(x.split(task.batch_size), y.split(task.batch_size), strict=True)
    with torch.no_grad():
        return torch.cat([margin(logits_of(task.model, a), b) for a, b in parts])


def settle(task: Task, state: State) -> Witnesses:
    """Check all witnesses once more at the end of a run; returns them.

    A random model has one input for each image, scored by draws that did not choose it.
    """
    if task.random:
        inputs = candidates(state.found)
        state.found = inputs.read(task.x, task.threat)[1]
        (state.clean, unattacked), (state.right, attacked) = rescored(
            task.model, task.x, state.found, task.y, task.seed, task.batch_size
        )
        state.mean_logits = MeanLogits(
            float(unattacked.double().mean()),
            float((attacked & (state.first_by != CLEAN_WRONG)).double().mean()),
        )
        state.right[state.first_by == CLEAN_WRONG] = 0.0
        return inputs
    witnesses, confirmed = keep(
        task.model, task.x, task.y, state.found, state.first_by >= 0, task.threat, task.batch_size
    )
    lost = (state.first_by >= 0) & ~confirmed
    state.first_by[lost], state.right[lost] = ROBUST, 1.0
    return witnesses
