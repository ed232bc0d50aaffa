"""What an audit runs on: model, images, members, constants, progress and what stops it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from spikeguard.auditing.member import Member
from spikeguard.auditing.state import Conditions
from spikeguard.gradients.surrogate import neuron_traits
from spikeguard.models import Model, eval_mode, is_stochastic
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.runtime.stop import Stop
from spikeguard.threat import Threat
from spikeguard.wrapping.contact import first_answers

BROKEN = 0.02
"""A sample of a random model counts as broken where a share of draws this small is right."""


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
        self.sample_ids = torch.arange(len(self.x), device="cpu") if self.index is None else self.index
        self.families = list(dict.fromkeys(m.family for m in self.members))
        self.random = bool(self.plan.random)
        if self.plan.random is None:
            with eval_mode(self.model):
                self.random = is_stochastic(self.model, *first_answers(self.model, self.x, self.y))

    @property
    def seed(self) -> int:
        return self.plan.seed

    @property
    def batch_size(self) -> int:
        return self.plan.batch_size


def traits(model: Model, random: bool, *found: str) -> frozenset[str]:
    """Traits of a model that decide which members make sense."""
    return frozenset({*neuron_traits(model), *({"noise"} if random else set()), *found})


def kept(task: Task) -> str:
    """What an audit that stops here keeps, for its message."""
    store = task.session.store
    if store is None:
        return "nothing was kept (no folder was named)"
    return f"what was found is kept in {store[0].parent}; resume with --resume"
