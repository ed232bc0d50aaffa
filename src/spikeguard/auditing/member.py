"""A member of a suite: one attack, its settings and the source of its gradient.

A family is a set of members that fail together (one source of gradients); an audit attacks a sample until two
families have broken it, so that it can measure what each family is needed for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from spikeguard import attacks
from spikeguard.arguments import checked_fields
from spikeguard.attacks import Attacked
from spikeguard.gradients import ASSG, EOT, Estimator, Own
from spikeguard.models import Model
from spikeguard.records.member_names import OLD_NAMES
from spikeguard.records.schema import Settings
from spikeguard.threat import Threat

OWN, OTHER, ADAPTIVE = "own gradient", "other surrogates", "adaptive sharpness"
BLACK = ("random", "scores", "labels", "transfer")
LOCAL = "local search"
"""The family that searches around the best points of all others, without a gradient of its own."""


@dataclass(frozen=True)
@checked_fields
class Member:
    """One attack with its settings and the source of its gradient.

    ``needs``: 'neurons' (of this library), 'noise' (a random model), 'no gradient' or 'no logits' (only then
    is it worth its cost). ``all``: it attacks every sample, so that it has an accuracy of its own; ``exact``:
    every sample that its own family has not broken. ``warm``: it starts at the best point so far, and attacks
    only what no member has broken. ``title``: its name for readers; ``key``: what its random numbers depend
    on beside the seed. Both default to the id.

    >>> mine = sg.auditing.Member("pgd-long", "own gradient", sg.pgd, {"steps": 500, "restarts": 2})
    >>> mine.title
    'pgd-long'
    """

    id: str
    family: str
    attack: Callable[..., Attacked]
    settings: Settings = field(default_factory=dict)
    gradient: Estimator | None = None
    needs: str = ""
    all: bool = False
    exact: bool = False
    warm: bool = False
    title: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.id)
        object.__setattr__(self, "key", self.key or OLD_NAMES.get(self.id, self.id))

    def run(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        seed: int,
        index: Tensor,
        first: Tensor | None = None,
        draws: int = 1,
    ) -> Attacked:
        """Attack ``x`` ``[N, ...]``; with ``draws`` above 1 every gradient is an average over the noise."""
        takes = inspect.signature(self.attack).parameters
        gradient = self.gradient
        if draws > 1 and "gradient" in takes and not isinstance(gradient, EOT):
            gradient = EOT(draws, gradient or (ASSG() if self.attack is attacks.sapgd else Own()))
        given = {"gradient": gradient, "seed": seed, "index": index, "first": first if self.warm else None}
        return self.attack(
            model,
            x,
            y,
            threat,
            **self.settings,
            **{k: v for k, v in given.items() if k in takes and v is not None},
        )

    def covers(self, other: Member) -> bool:
        """Whether it is the same attack, with as many restarts or more."""
        mine, theirs = (
            {**m.as_dict(), "id": "", "settings": {**m.settings, "restarts": 0}} for m in (self, other)
        )
        return mine == theirs and self.restarts >= other.restarts

    @property
    def restarts(self) -> int:
        """Number of starts."""
        return int(str(self.settings.get("restarts", 1)))

    @property
    def steps(self) -> int:
        """Steps of all restarts together, or queries of the local search; else 0."""
        counts = ("queries", "more") if self.family == LOCAL else ("steps",)
        return sum(int(str(self.settings.get(name, 0))) for name in counts) * self.restarts

    def as_dict(self) -> Settings:
        """What the suite's hash is made of."""
        return {
            "id": self.id,
            "family": self.family,
            "attack": self.attack.__name__,
            "settings": dict(self.settings),
            "gradient": "own" if self.gradient is None else repr(self.gradient),
            "needs": self.needs,
        }
