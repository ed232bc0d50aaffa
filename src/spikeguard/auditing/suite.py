"""Attacks as data: which members a suite has, in which order, with which counts. Changing any of it is a new
hash.

Order: cheapest first. A family is a set of members that fail together (one source of gradients); an audit
runs every sample until two families have broken it, so that it can say what each family was needed for.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from spikeguard import attacks
from spikeguard.attacks import Attacked
from spikeguard.attacks.adaptive import AdaptiveAttack
from spikeguard.gradients import (
    ASSG,
    BPDA,
    BPTR,
    ENSEMBLE,
    EOT,
    HART,
    PDSG,
    RGA,
    Estimator,
    MeanField,
    NoiseFree,
    Own,
    PerStep,
    RandomSurrogate,
    SoftSpikes,
    SwapSurrogate,
    ThresholdFirst,
    ZerothOrder,
)
from spikeguard.models import Model
from spikeguard.surrogates import Atan, Rectangle, StraightThrough, Triangle
from spikeguard.threat import Threat

VERSION = "suite-v2"
Effort = Literal["quick", "standard", "full", "autoattack"]
EFFORTS: dict[str, int | None] = {"quick": 200, "standard": 1000, "full": None, "autoattack": 1000}
"""Images that an effort is meant for (None: all there are).

'autoattack' is its protocol and nothing else, for comparison with the literature.
"""
OWN, BLACK = "own gradient", ("random", "scores", "labels", "transfer")
EOT_DRAWS = {"quick": 4, "standard": 10, "full": 20, "autoattack": 20}
"""Gradients averaged a step where the model is random."""


@dataclass(frozen=True)
class Member:
    """One attack with its settings and where its gradient comes from.

    ``needs``: 'neurons' (of ours), 'noise' (a random model), 'no gradient' or 'no logits' (only then is it
    worth its cost). ``all``: it meets every sample, so that it has an accuracy of its own; ``exact``: every
    sample that its own family has not broken. ``warm``: it starts at the best point so far.
    """

    name: str
    family: str
    attack: Callable[..., Attacked]
    settings: dict[str, Any] = field(default_factory=dict)
    gradient: Estimator | None = None
    needs: str = ""
    all: bool = False
    exact: bool = False
    warm: bool = False

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
        """Attack.

        With ``draws`` above 1 every gradient is an average over the model's noise, if it is none already.
        """
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
            {**m.told(), "name": "", "settings": {**m.settings, "restarts": 0}} for m in (self, other)
        )
        return mine == theirs and self.settings.get("restarts", 1) >= other.settings.get("restarts", 1)

    def told(self) -> dict[str, Any]:
        """What a record says of it, and what the suite's hash is made of."""
        return {
            "name": self.name,
            "family": self.family,
            "attack": self.attack.__name__,
            "settings": dict(self.settings),
            "gradient": "own" if self.gradient is None else repr(self.gradient),
            "needs": self.needs,
        }


def _sapgd(
    steps: int,
    strength: float,
    shape: Atan | Triangle,
    loss: str = "ce",
    warm: bool = False,
    start_from_first: bool = False,
    restarts: int = 1,
) -> Member:
    law = type(shape).__name__.lower()
    times = f" x {restarts}" if restarts > 1 else ""
    name = (
        f"SA-PGD-{steps}{times} ASSG {law} {strength:g}{' seen' if start_from_first else ''} "
        f"{loss}{' warm' if warm else ''}"
    )
    settings = {"steps": steps, "loss": loss, **({"restarts": restarts} if restarts > 1 else {})}
    return Member(
        name,
        "adaptive sharpness",
        attacks.sapgd,
        settings,
        ASSG(strength, shape, start_from_first),
        warm=warm,
    )


def _towards(steps: int, targets: int) -> Member:
    settings = {"rule": "sapgd", "steps": steps, "targets": targets, "loss": "margin"}
    return Member(
        f"SA-PGD-{steps} ASSG towards {targets}", "adaptive sharpness", attacks.targeted, settings, ASSG()
    )


def _pgd(
    steps: int,
    family: str,
    told: str,
    gradient: Estimator | None,
    needs: str = "",
    loss: str = "ce",
    restarts: int = 1,
) -> Member:
    settings = {"steps": steps, "restarts": restarts, "loss": loss}
    return Member(
        f"PGD-{steps} {told}", family, attacks.pgd, settings, gradient, needs=needs, exact=family == OWN
    )


FGSM = Member("FGSM", OWN, attacks.fgsm, all=True)
PGD_20 = Member("PGD-20", OWN, attacks.pgd, {"steps": 20, "restarts": 1}, all=True)

QUICK = (
    Member("noise", "random", attacks.random_noise, {"tries": 10}, all=True),
    FGSM,
    PGD_20,
    _sapgd(20, 0.435, Atan()),
    _sapgd(20, 0.8, Triangle()),
    _pgd(10, "other surrogates", "straight-through", SwapSurrogate(StraightThrough())),
    _pgd(10, "other surrogates", "rectangle", SwapSurrogate(Rectangle(1.0))),
    _sapgd(40, 0.435, Atan(), start_from_first=True),
    _sapgd(40, 0.435, Atan(), "margin", start_from_first=True),
    Member(
        "SA-PGD-40 Atan(4) margin",
        "other surrogates",
        attacks.sapgd,
        {"steps": 40, "loss": "margin"},
        SwapSurrogate(Atan(4.0)),
    ),
    Member(
        "SA-PGD-40 unlocked margin",
        "unlocked",
        attacks.sapgd,
        {"steps": 40, "loss": "margin"},
        BPDA(Atan(4.0)),
    ),
    Member(
        "APGD-20 unlocked towards 3",
        "unlocked",
        attacks.targeted,
        {"steps": 20, "targets": 3},
        BPDA(Atan(4.0)),
    ),
    _towards(20, 3),
    Member(
        "PGD-10 NES",
        "differences",
        attacks.pgd,
        {"steps": 10, "restarts": 1, "loss": "margin"},
        ZerothOrder(samples=20),
        needs="no gradient",
    ),
    Member("Square-200", "scores", attacks.square, {"queries": 200}),
    Member("RayS-500", "labels", attacks.rays, {"queries": 500}, needs="no logits"),
)

_ENSEMBLE = {
    name: _pgd(
        10, "other surrogates", f"ensemble {name}", e, "" if isinstance(e, SwapSurrogate) else "neurons"
    )
    for name, e in ENSEMBLE.items()
}
RESTARTS = 3
"""Of the sharpest members of ``STANDARD``: the near-copies that left it had served as restarts."""
_LONG = (
    Member("PGD-40 x 2", OWN, attacks.pgd, {"steps": 40, "restarts": 2}, exact=True),
    Member("APGD-50", OWN, attacks.apgd, {"steps": 50}, exact=True),
)
_PULLED = Member(
    "SA-PGD-30 pulled", "threshold", attacks.sapgd, {"steps": 30}, ThresholdFirst(), needs="neurons"
)
_DEAR = (
    Member("random search-1000", "random", attacks.random_search, {"queries": 1000}),
    Member("RayS-1000", "labels", attacks.rays, {"queries": 1000}),
    Member("Square-5000", "scores", attacks.square, {"queries": 5000}),
)

STANDARD = (
    *(m for m in QUICK if m.all),
    *_LONG,
    _ENSEMBLE["triangle 0.5"],
    _pgd(20, "other surrogates", "PDSG", PDSG()),
    Member(
        "APGD-20 unlocked towards 3",
        "unlocked",
        attacks.targeted,
        {"steps": 20, "targets": 3},
        BPDA(Atan(4.0)),
    ),
    _sapgd(100, 0.435, Atan(), restarts=RESTARTS),
    _sapgd(100, 1.6, Triangle(), restarts=RESTARTS),
    _sapgd(100, 0.435, Atan(), start_from_first=True, restarts=RESTARTS),
    *_DEAR,
)
"""

Every member but the controls and the two that measure masking (``_LONG``) alone breaks a sample of a network
in ``results/audit-panel.json``.
"""

RESERVE = (
    *(m for m in QUICK if m not in STANDARD),
    Member("MI-20", OWN, attacks.pgd, {"steps": 20, "restarts": 1, "momentum": 1.0}, exact=True),
    Member("APGD-T-50", OWN, attacks.apgd_targeted, {"steps": 50, "targets": 3}, exact=True),
    _pgd(20, OWN, "per step", PerStep(), "neurons"),
    *(m for name, m in _ENSEMBLE.items() if name != "triangle 0.5"),
    _pgd(20, "other surrogates", "by lot", RandomSurrogate()),
    _pgd(20, "other surrogates", "Atan(4), reset detached", SwapSurrogate(Atan(4.0), True), "neurons"),
    _pgd(20, "other surrogates", "Atan(4), reset kept", SwapSurrogate(Atan(4.0), False), "neurons"),
    _pgd(20, "rates", "HART", HART(0.5), "neurons"),
    _pgd(20, "rates", "RGA", RGA(), "neurons"),
    _pgd(20, "rates", "BPTR", BPTR(), "neurons"),
    _pgd(20, "soft spikes", "mean field", MeanField(), "neurons"),
    _pgd(20, "soft spikes", "soft spikes", SoftSpikes(), "neurons"),
    _pgd(20, "soft spikes", "noise-free copy", NoiseFree(Atan(4.0)), "noise"),
    _sapgd(100, 0.435, Atan()),
    _PULLED,
    _sapgd(100, 0.35, Atan()),
    _sapgd(100, 0.8, Triangle()),
    _sapgd(100, 0.435, Atan(), "margin", start_from_first=True),
    _towards(50, 9),
    _sapgd(50, 0.435, Atan(), "margin", warm=True, start_from_first=True),
    Member("Square-1000", "scores", attacks.square, {"queries": 1000}),
)
"""What breaks nothing on the panel that ``STANDARD`` does not break, too; members of 'full', and of any audit
of a network whose defense names
them as adaptive to it. SA-PGD-100 is here once more, without restarts, for the study, where every network
meets what is adaptive to any."""

AUTOATTACK = (
    Member("AutoAttack APGD-CE", OWN, attacks.apgd, {"steps": 100}, exact=True),
    Member("AutoAttack APGD-T", OWN, attacks.apgd_targeted, {"steps": 100, "targets": 9}, exact=True),
    Member("AutoAttack FAB-T", OWN, attacks.fab, {"steps": 100, "targets": 9}, exact=True),
    Member("AutoAttack Square", "scores", attacks.square, {"queries": 5000}),
)
"""AutoAttack's standard protocol. Croce and Hein, ICML 2020."""
AUTOATTACK_RAND = (
    Member("AutoAttack APGD-CE, EOT", OWN, attacks.apgd, {"steps": 100}, EOT(20), exact=True),
    Member("AutoAttack APGD-DLR, EOT", OWN, attacks.apgd, {"steps": 100, "loss": "dlr"}, EOT(20), exact=True),
)
"""AutoAttack's protocol for random models."""

FULL = (
    *(m for m in STANDARD if m not in _DEAR),
    *RESERVE,
    *_DEAR,
    *AUTOATTACK[:-1],  # its Square is in STANDARD
    Member("PGD-1000 x 5", OWN, attacks.pgd, {"steps": 1000, "restarts": 5}, exact=True),
    _sapgd(1000, 0.435, Atan()),
)
C_AND_W = Member("C&W-100", OWN, attacks.cw, {"steps": 100, "learning_rate": 0.05}, exact=True)
OTHER_NORMS = "sparse steps; square and rays"
"""What attacks do under L2 and L1; changing it is a new hash of the suites there."""
SUITES: dict[str, Sequence[Member]] = {
    "quick": QUICK,
    "standard": STANDARD,
    "full": FULL,
    "autoattack": AUTOATTACK,
}


def member_of(adaptive: AdaptiveAttack) -> Member:
    """The member that runs an adaptive attack: the equal one of ``FULL``, else a new one.

    Its family is that of the members whose gradient has the same source.
    """
    same = (adaptive.attack, dict(adaptive.settings), adaptive.gradient)
    for member in FULL:
        if (member.attack, member.settings, member.gradient) == same:
            return member
    source = _source(adaptive.gradient)
    family = next((m.family for m in FULL if _source(m.gradient) is source), "adaptive")
    return Member(
        adaptive.name,
        family,
        adaptive.attack,
        dict(adaptive.settings),
        adaptive.gradient,
        exact=family == OWN,
    )


def _source(gradient: Estimator | None) -> type:
    """The kind of estimator that an average or a loss of every step is taken of."""
    inner = getattr(gradient, "inner", None)
    return type(gradient or Own()) if inner is None else _source(inner)


def members(
    effort: str,
    threat: Threat,
    traits: frozenset[str],
    extra: Sequence[Member] = (),
    adaptive: Sequence[AdaptiveAttack] = (),
) -> tuple[list[Member], dict[str, str]]:
    """The members that meet a model with these traits under this threat, and the others with the reason why
    not.

    ``adaptive``: the attacks made for the model's own defenses; they come last, if the effort does not have
    them.
    """
    chosen, left = [], {}
    rows = list(SUITES[effort])
    if effort != "autoattack":
        own = sorted(map(member_of, adaptive), key=lambda m: FULL.index(m) if m in FULL else len(FULL))
        for member in own:
            if not any(row.covers(member) for row in rows):
                rows.append(member)
    if "noise" in traits and effort in ("full", "autoattack"):
        rows = [m for m in rows if m not in AUTOATTACK] + list(AUTOATTACK_RAND)
    if threat.norm == "l2" and effort in ("standard", "full"):
        rows.append(C_AND_W)
    for member in [*rows, *extra]:
        if member.needs and member.needs not in traits:
            left[member.name] = {
                "neurons": "the model has no neurons of ours",
                "noise": "the model is not random",
            }.get(
                member.needs,
                "not needed: the model gives gradients"
                if member.needs == "no gradient"
                else "not needed: the model gives logits",
            )
        else:
            chosen.append(member)
    return chosen, left


def fingerprint(effort: str, norm: str = "linf", random: bool = False) -> str:
    """The first 16 digits of a hash of all that a suite is made of, under a norm.

    Of AutoAttack's protocol, that for random models if it is one.
    """
    suite = AUTOATTACK_RAND if random and effort == "autoattack" else SUITES[effort]
    parts = [
        VERSION,
        EOT_DRAWS[effort],
        [m.told() for m in suite],
        *([norm, OTHER_NORMS] if norm != "linf" else []),
    ]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
