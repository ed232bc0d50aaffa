"""Running a suite over a set of images.

In chunks by index, survivors only, every success re-checked on the untouched model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeguard.attacks import Attacked
from spikeguard.auditing.scoring import CHOOSE_DRAWS, fresh_draws, over_draws
from spikeguard.auditing.state import CLEAN_WRONG, ROBUST, State
from spikeguard.auditing.suite import Member
from spikeguard.auditing.witnesses import Witnesses, everyone, keep, misclassified
from spikeguard.errors import Interrupted, UserError
from spikeguard.gradients.surrogate import known
from spikeguard.losses import margin
from spikeguard.models import Model, check_logits, eval_mode, is_stochastic
from spikeguard.random import draws
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.runtime.stop import Stop
from spikeguard.threat import Threat, check_images

SAVE_EVERY = 20.0  # seconds
BROKEN = 0.02  # a sample of a random model counts as broken where a share of draws this small is right
FAMILIES_WANTED = 2


@dataclass
class Task:
    """What is attacked, and how it is gone about. ``draws``: gradients averaged a step if it is random.
    ``store``:
    where the state is kept, under which conditions; ``stop``: asks for an end; ``known_random``: found out
    before."""

    model: Model
    x: Tensor
    y: Tensor
    threat: Threat
    members: Sequence[Member]
    seed: int = 0
    index: Tensor | None = None
    batch_size: int = 250
    draws: int = 1
    tell: Progress = no_progress
    store: tuple[Path, dict[str, Any]] | None = None
    stop: Stop | None = None
    known_random: bool | None = None

    def __post_init__(self) -> None:
        check_images(self.x, self.y)
        self.numbers = torch.arange(len(self.x)) if self.index is None else self.index
        self.families = list(dict.fromkeys(m.family for m in self.members))
        self.random = bool(self.known_random)
        if self.known_random is None:
            with eval_mode(self.model):
                self.random = is_stochastic(self.model, *check_logits(self.model, self.x, self.y))


def traits(model: Model, random: bool, *found: str) -> frozenset[str]:
    """What decides which members make sense."""
    return frozenset({*({"neurons"} if known(model) else set()), *({"noise"} if random else set()), *found})


def begin(task: Task) -> State:
    """The state before the first attack, or the one that was stored."""
    if task.store and task.store[0].exists():
        return State.load(*task.store, task.x.device)
    with eval_mode(task.model):
        if task.random:
            clean = fresh_draws(
                task.model, task.x, task.y, draws.key(task.seed, "choose"), CHOOSE_DRAWS, task.batch_size
            )
        else:
            clean = (~misclassified(task.model, task.x, task.y)).float()
        values = _margins(task, task.x, task.y)
    return State.start(task.x, clean, values, len(task.families))


def run(task: Task, state: State | None = None) -> State:
    """All members in turn from where ``state`` stands.

    Raises Interrupted once the state is stored, if asked to stop.
    """
    state = state or begin(task)
    chunks = torch.arange(len(task.x), device=task.x.device).split(task.batch_size)
    begun = saved = time.monotonic()
    for number, member in enumerate(task.members):
        for place, chunk in enumerate(chunks):
            if (number, place) < tuple(state.done):
                continue
            at, of = number * len(chunks) + place, len(task.members) * len(chunks)
            task.tell(
                f"{number + 1} of {len(task.members)}: {member.name}", at, of
            )  # of all work, so that an ETA is one for all of it
            rows, stopped = chunk[_wanted(task, state, member, chunk)], False
            try:
                if len(rows):
                    _attack(task, state, number, member, rows)
            except Interrupted:  # inside an attack: this chunk begins anew
                stopped = True
            else:
                state.done = (number, place + 1) if place + 1 < len(chunks) else (number + 1, 0)
                stopped = task.stop is not None and task.stop.is_set()
            if task.store and (stopped or time.monotonic() - saved > SAVE_EVERY):
                state.save(*task.store, time.monotonic() - begun)
                saved = time.monotonic()
            if stopped:
                raise Interrupted(f"audit stopped at {member.name}; {kept(task)}")
        if state.done == (number + 1, 0):
            state.after[member.name] = float(state.right.double().mean())
    if task.store:
        state.save(*task.store, time.monotonic() - begun)
    return state


def kept(task: Task) -> str:
    """What is left of an audit that stops here."""
    return (
        f"what was found is kept in {task.store[0].parent}; go on with --resume"
        if task.store
        else "nothing was kept (no folder was named)"
    )


def _wanted(task: Task, state: State, member: Member, chunk: Tensor) -> Tensor:
    """Which samples of a chunk a member meets, ``[n]`` bool."""
    broken = state.by_family[:, chunk] <= BROKEN * (state.clean[chunk] > 0)
    mine, valid = broken[task.families.index(member.family)], state.first[chunk] != CLEAN_WRONG
    if member.all:
        return valid
    if member.exact:
        return valid & ~mine
    return valid & ~mine & (broken.sum(0) < FAMILIES_WANTED)


def _attack(task: Task, state: State, number: int, member: Member, rows: Tensor) -> None:
    begun = time.perf_counter()
    x, y, threat = task.x[rows], task.y[rows], task.threat.select(rows)
    cost = state.cost.setdefault(member.name, {"seconds": 0.0, "forwards": 0, "backwards": 0})
    try:
        key = draws.key(task.seed, member.name)
        with _stoppable(task):
            got = member.run(
                task.model,
                x,
                y,
                threat,
                key,
                task.numbers[rows.cpu()],
                state.found[rows],
                task.draws if task.random else 1,
            )
        threat.check(got.x, x)
    except Interrupted:
        raise
    except (
        Exception
    ) as error:  # the model's code may raise anything, here inside its own backward pass too: told as a flag
        state.failed[member.name] = (
            str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        )
    else:
        cost["forwards"] += got.forwards
        cost["backwards"] += got.backwards
        _note(task, state, number, member, rows, got)
    cost["seconds"] = round(cost["seconds"] + time.perf_counter() - begun, 3)


@contextmanager
def _stoppable(task: Task) -> Iterator[None]:
    """Whoever asks for an end is heard at the next pass of a module.

    Not at the end of an attack that may take hours.
    """
    stop = task.stop
    if stop is None or not isinstance(task.model, nn.Module):
        yield
        return

    def look(*_: object) -> None:
        if stop.is_set():
            raise Interrupted("audit stopped inside an attack")

    try:
        handle = task.model.register_forward_pre_hook(look)
    except RuntimeError:  # a scripted module takes no hooks: the stop is heard after the attack
        handle = None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _note(task: Task, state: State, number: int, member: Member, rows: Tensor, got: Attacked) -> None:
    x, y, family = task.x[rows], task.y[rows], task.families.index(member.family)
    if task.random:
        with eval_mode(task.model):
            share = torch.minimum(
                state.clean[rows],
                fresh_draws(
                    task.model, got.x, y, draws.key(task.seed, "choose"), CHOOSE_DRAWS, task.batch_size
                ),
            )
        confirmed = share <= BROKEN
    else:
        _, confirmed = keep(task.model, x, y, got.x, got.broken, task.threat.select(rows), task.batch_size)
        state.unconfirmed[member.name] = state.unconfirmed.get(member.name, 0) + int(
            (got.broken & ~confirmed).sum()
        )
        share = state.clean[rows] * ~confirmed
    if member.all:
        total = state.alone.get(member.name, 0.0) + float(share.double().sum())
        state.alone[member.name] = total
    with eval_mode(task.model):
        value = _margins(task, got.x, y)
    lower, standing = share < state.right[rows], state.right[rows] > BROKEN
    closer = standing & (share <= state.right[rows]) & (value > state.margin[rows])
    better = lower | closer
    state.found[rows[better]], state.margin[rows[better]] = got.x[better], value[better]
    state.right[rows] = torch.minimum(state.right[rows], share)
    state.by_family[family, rows] = torch.minimum(state.by_family[family, rows], share)
    new = confirmed & (state.first[rows] == ROBUST)
    other = torch.tensor([task.families.index(m.family) for m in task.members], device=rows.device)
    known = state.first[rows].clamp(min=0)
    again = (
        confirmed
        & ~new
        & (state.first[rows] >= 0)
        & (state.second[rows] == ROBUST)
        & (other[known] != family)
    )
    state.first[rows[new]], state.second[rows[again]] = number, number
    state.met[member.name] = state.met.get(member.name, 0) + len(rows)
    state.broke[member.name] = state.broke.get(member.name, 0) + int(confirmed.sum())
    if not task.random and (when := got.when[got.broken]).numel() and int(when.max()) > 0:
        counts = torch.bincount(when.clamp(min=0)).tolist()
        before = state.steps.get(member.name, [])
        longer = max(len(before), len(counts))
        state.steps[member.name] = [sum(v[k] for v in (before, counts) if k < len(v)) for k in range(longer)]


def rescored(
    model: Model, x: Tensor, found: Tensor, y: Tensor, seed: int, batch_size: int
) -> list[tuple[Tensor, Tensor]]:
    """``over_draws`` that chose nothing, of a random model: at the images and at what was found."""
    with eval_mode(model):
        return [over_draws(model, at, y, draws.key(seed, "score"), batch=batch_size) for at in (x, found)]


def _margins(task: Task, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat(
            [
                margin(task.model(a), b)
                for a, b in zip(x.split(task.batch_size), y.split(task.batch_size), strict=True)
            ]
        )


def settle(task: Task, state: State) -> Witnesses:
    """The end of it: all witnesses checked once more.

    For a random model one input an image, scored on draws that did not choose them.
    """
    if task.random:
        candidates = everyone(state.found)
        state.found = candidates.read(task.x, task.threat)[1]
        (state.clean, unattacked), (state.right, attacked) = rescored(
            task.model, task.x, state.found, task.y, task.seed, task.batch_size
        )
        state.of_mean = {
            "clean": float(unattacked.double().mean()),
            "worst_case": float((attacked & (state.first != CLEAN_WRONG)).double().mean()),
        }
        state.right[state.first == CLEAN_WRONG] = 0.0
        return candidates
    witnesses, confirmed = keep(
        task.model, task.x, task.y, state.found, state.first >= 0, task.threat, task.batch_size
    )
    lost = (state.first >= 0) & ~confirmed
    state.first[lost], state.right[lost] = ROBUST, 1.0
    return witnesses
