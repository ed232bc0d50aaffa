"""Suites of attacks as data: members, order, counts. Every change of them changes the suite's hash.

Cheap members come first. A family is a set of members that fail together (one source of gradients); an audit
attacks a sample until two families have broken it, so that it can measure what each family is needed for.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from spikeguard import attacks
from spikeguard.arguments import checked_fields
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
    Activity,
    Estimator,
    LearnedBlend,
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
from spikeguard.records.member_names import OLD_NAMES
from spikeguard.records.schema import Settings
from spikeguard.surrogates import Atan, Rectangle, StraightThrough, Triangle
from spikeguard.threat import Threat

VERSION = "suite-v3"
Effort = Literal["quick", "standard", "full", "autoattack"]
EFFORTS: dict[str, int | None] = {"quick": 200, "standard": 1000, "full": None, "autoattack": 1000}
"""Number of images that an effort is meant for (None: all).

'autoattack' is that protocol alone, for comparison with the literature.
"""
OWN, OTHER, ADAPTIVE = "own gradient", "other surrogates", "adaptive sharpness"
BLACK = ("random", "scores", "labels", "transfer")
LOCAL = "local search"
"""The family that searches around the best points of all others, without a gradient of its own."""
EOT_DRAWS = {"quick": 4, "standard": 10, "full": 20, "autoattack": 20}
"""Gradients averaged in each step against a random model."""


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
        count = self.settings.get("queries" if self.family == LOCAL else "steps", 0)
        return int(str(count)) * self.restarts

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


def _sapgd(
    steps: int,
    strength: float,
    shape: Atan | Triangle,
    loss: str = "ce",
    warm: bool = False,
    start_from_first: bool = False,
    restarts: int = 1,
) -> Member:
    """SA-PGD with ASSG."""
    law = type(shape).__name__.lower()
    marks = [("first", start_from_first), ("margin", loss == "margin"), ("warm", warm)]
    starts = f"x{restarts}" if restarts > 1 else ""
    id = f"sapgd{steps}{starts}-assg-{law}{strength:g}" + "".join(f"-{m}" for m, on in marks if on)
    title = (
        f"SA-PGD-{steps}{f' x {restarts}' if restarts > 1 else ''}, ASSG {law} {strength:g}"
        f"{' from the first potentials' if start_from_first else ''}"
        f"{', margin loss' if loss == 'margin' else ''}{', warm start' if warm else ''}"
    )
    settings: Settings = {"steps": steps, "loss": loss, **({"restarts": restarts} if restarts > 1 else {})}
    gradient = ASSG(strength, shape, start_from_first)
    return Member(id, ADAPTIVE, attacks.sapgd, settings, gradient, warm=warm, title=title)


def _targeted(steps: int, targets: int) -> Member:
    """SA-PGD with ASSG at the nearest other classes."""
    settings: Settings = {"rule": "sapgd", "steps": steps, "targets": targets, "loss": "margin"}
    title = f"SA-PGD-{steps}, ASSG, {targets} target classes"
    return Member(
        f"sapgd{steps}-assg-targeted{targets}", ADAPTIVE, attacks.targeted, settings, ASSG(), title=title
    )


def _pgd(
    steps: int, family: str, name: tuple[str, str], gradient: Estimator | None, needs: str = ""
) -> Member:
    """PGD with another gradient; ``name``: the end of its id and of its title."""
    settings: Settings = {"steps": steps, "restarts": 1, "loss": "ce"}
    id, title = f"pgd{steps}-{name[0]}", f"PGD-{steps}, {name[1]}"
    exact = family == OWN
    return Member(id, family, attacks.pgd, settings, gradient, needs=needs, exact=exact, title=title)


def _block_search(queries: int) -> Member:
    """The local search from the best points so far."""
    title = f"block search-{queries}"
    return Member(
        f"block{queries}", LOCAL, attacks.block_search, {"queries": queries}, warm=True, title=title
    )


BPDA_TARGETED = Member(
    "apgd20-bpda-targeted3",
    "bpda",
    attacks.targeted,
    {"steps": 20, "targets": 3},
    BPDA(Atan(4.0)),
    title="APGD-20, BPDA, 3 target classes",
)
FGSM = Member("fgsm", OWN, attacks.fgsm, all=True, title="FGSM")
PGD_20 = Member("pgd20", OWN, attacks.pgd, {"steps": 20, "restarts": 1}, all=True, title="PGD-20")
NOISE = Member("noise", "random", attacks.random_noise, {"tries": 10}, all=True, title="random noise")
SQUARE_200 = Member("square200", "scores", attacks.square, {"queries": 200}, title="Square-200")

QUICK = (
    NOISE,
    FGSM,
    PGD_20,
    _sapgd(20, 0.435, Atan()),
    _sapgd(20, 0.8, Triangle()),
    _pgd(10, OTHER, ("straight-through", "straight-through"), SwapSurrogate(StraightThrough())),
    _pgd(10, OTHER, ("rectangle", "rectangle"), SwapSurrogate(Rectangle(1.0))),
    _sapgd(40, 0.435, Atan(), start_from_first=True),
    _sapgd(40, 0.435, Atan(), "margin", start_from_first=True),
    Member(
        "sapgd40-atan4-margin",
        OTHER,
        attacks.sapgd,
        {"steps": 40, "loss": "margin"},
        SwapSurrogate(Atan(4.0)),
        title="SA-PGD-40, Atan(4), margin loss",
    ),
    Member(
        "sapgd40-bpda-margin",
        "bpda",
        attacks.sapgd,
        {"steps": 40, "loss": "margin"},
        BPDA(Atan(4.0)),
        title="SA-PGD-40, BPDA, margin loss",
    ),
    BPDA_TARGETED,
    _targeted(20, 3),
    Member(
        "pgd10-nes",
        "differences",
        attacks.pgd,
        {"steps": 10, "restarts": 1, "loss": "margin"},
        ZerothOrder(samples=20),
        needs="no gradient",
        title="PGD-10, NES, margin loss",
    ),
    _block_search(400),
    SQUARE_200,
    Member("rays500", "labels", attacks.rays, {"queries": 500}, needs="no logits", title="RayS-500"),
)

_ENSEMBLE = {
    name: _pgd(
        10,
        OTHER,
        (f"ensemble-{name.replace(' ', '-').lower()}", f"ensemble's {name}"),
        e,
        "" if isinstance(e, SwapSurrogate) else "neurons",
    )
    for name, e in ENSEMBLE.items()
}
RESTARTS = 3
"""Starts of the sharpest members of ``STANDARD``; they take the place of near copies of these members."""
_LONG = (
    Member("pgd40x2", OWN, attacks.pgd, {"steps": 40, "restarts": 2}, exact=True, title="PGD-40 x 2"),
    Member("apgd50", OWN, attacks.apgd, {"steps": 50}, exact=True, title="APGD-50"),
)
_THRESHOLD_FIRST = Member(
    "sapgd30-threshold-first",
    "threshold",
    attacks.sapgd,
    {"steps": 30},
    ThresholdFirst(),
    needs="neurons",
    title="SA-PGD-30, threshold first",
)
_COLD = (
    Member(
        "random-search1000", "random", attacks.random_search, {"queries": 1000}, title="random search-1000"
    ),
    Member("rays1000", "labels", attacks.rays, {"queries": 1000}, title="RayS-1000"),
)

STANDARD = (
    *(m for m in QUICK if m.all),
    *_LONG,
    _ENSEMBLE["triangle 0.5"],
    _pgd(20, OTHER, ("pdsg", "PDSG"), PDSG()),
    BPDA_TARGETED,
    _sapgd(100, 0.435, Atan(), restarts=RESTARTS),
    _sapgd(100, 1.6, Triangle(), restarts=RESTARTS),
    _sapgd(100, 0.435, Atan(), start_from_first=True, restarts=RESTARTS),
    _block_search(1000),
    SQUARE_200,
    *_COLD,
)
"""Every member but the controls (Square-200 among them), the two that measure masking (``_LONG``) and the
local search is the only one to break some sample of a network in ``results/audit-panel.json``.
"""

RESERVE = (
    *(m for m in QUICK if m not in STANDARD),
    Member(
        "mi20", OWN, attacks.pgd, {"steps": 20, "restarts": 1, "momentum": 1.0}, exact=True, title="MI-20"
    ),
    Member(
        "apgd50-targeted",
        OWN,
        attacks.apgd_targeted,
        {"steps": 50, "targets": 3},
        exact=True,
        title="APGD-T-50",
    ),
    _pgd(20, OWN, ("per-step", "per-step gradient"), PerStep(), "neurons"),
    *(m for name, m in _ENSEMBLE.items() if name != "triangle 0.5"),
    _pgd(20, OTHER, ("random-surrogate", "random surrogate"), RandomSurrogate()),
    _pgd(
        20,
        OTHER,
        ("atan-reset-detached", "Atan(4), reset detached"),
        SwapSurrogate(Atan(4.0), True),
        "neurons",
    ),
    _pgd(20, OTHER, ("atan-reset-kept", "Atan(4), reset kept"), SwapSurrogate(Atan(4.0), False), "neurons"),
    _pgd(20, "rates", ("hart", "HART"), HART(0.5), "neurons"),
    _pgd(20, "rates", ("rga", "RGA"), RGA(), "neurons"),
    _pgd(20, "rates", ("bptr", "BPTR"), BPTR(), "neurons"),
    _pgd(20, "blends", ("learned-blend", "learned blend"), LearnedBlend()),
    _pgd(20, "activity", ("activity", "extreme activity"), Activity(), "neurons"),
    _pgd(20, "soft spikes", ("mean-field", "mean field"), MeanField(), "neurons"),
    _pgd(20, "soft spikes", ("soft-spikes", "soft spikes"), SoftSpikes(), "neurons"),
    _pgd(20, "soft spikes", ("noise-free", "noise-free copy"), NoiseFree(Atan(4.0)), "noise"),
    _sapgd(100, 0.435, Atan()),
    _THRESHOLD_FIRST,
    _sapgd(100, 0.35, Atan()),
    _sapgd(100, 0.8, Triangle()),
    _sapgd(100, 0.435, Atan(), "margin", start_from_first=True),
    _targeted(50, 9),
    _sapgd(50, 0.435, Atan(), "margin", warm=True, start_from_first=True),
    Member("square1000", "scores", attacks.square, {"queries": 1000}, title="Square-1000"),
)
"""Members that break nothing on the panel which ``STANDARD`` does not break; they are part of 'full', and of
the audit of a network whose defense calls them adaptive. SA-PGD-100 without restarts is here for the study,
where every network is attacked by what is adaptive to any.
"""

AUTOATTACK = (
    Member("autoattack-apgd-ce", OWN, attacks.apgd, {"steps": 100}, exact=True, title="AutoAttack APGD-CE"),
    Member(
        "autoattack-apgd-t",
        OWN,
        attacks.apgd_targeted,
        {"steps": 100, "targets": 9},
        exact=True,
        title="AutoAttack APGD-T",
    ),
    Member(
        "autoattack-fab-t",
        OWN,
        attacks.fab,
        {"steps": 100, "targets": 9},
        exact=True,
        title="AutoAttack FAB-T",
    ),
    Member("autoattack-square", "scores", attacks.square, {"queries": 5000}, title="AutoAttack Square"),
)
"""AutoAttack's standard protocol. Croce and Hein, ICML 2020."""
AUTOATTACK_RAND = (
    Member(
        "autoattack-apgd-ce-eot",
        OWN,
        attacks.apgd,
        {"steps": 100},
        EOT(20),
        exact=True,
        title="AutoAttack APGD-CE, EOT",
    ),
    Member(
        "autoattack-apgd-dlr-eot",
        OWN,
        attacks.apgd,
        {"steps": 100, "loss": "dlr"},
        EOT(20),
        exact=True,
        title="AutoAttack APGD-DLR, EOT",
    ),
)
"""AutoAttack's protocol for random models."""

FULL = (
    *(m for m in STANDARD if m not in _COLD),
    *RESERVE,
    *_COLD,
    Member("square5000", "scores", attacks.square, {"queries": 5000}, title="Square-5000"),
    *AUTOATTACK[:-1],  # its Square is the one above
    Member("pgd1000x5", OWN, attacks.pgd, {"steps": 1000, "restarts": 5}, exact=True, title="PGD-1000 x 5"),
    _sapgd(1000, 0.435, Atan()),
    _block_search(10_000),
)
C_AND_W = Member("cw100", OWN, attacks.cw, {"steps": 100, "learning_rate": 0.05}, exact=True, title="C&W-100")
OTHER_NORMS = "sparse steps of pixels that can move; square and rays; shares for blocks"
"""What attacks do under L2 and L1; every change of it changes the hash of the suites there."""
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
    settings = dict(adaptive.settings)
    for member in FULL:
        same = (member.attack, member.settings, member.gradient)
        if same == (adaptive.attack, settings, adaptive.gradient):
            return member
    source = _source(adaptive.gradient)
    own, title = source is Own, adaptive.title
    family = OWN if own else next((m.family for m in FULL if _source(m.gradient) is source), "adaptive")
    return Member(adaptive.id, family, adaptive.attack, settings, adaptive.gradient, exact=own, title=title)


def _source(gradient: Estimator | None) -> type:
    """The kind of estimator that an average or a loss of every step is taken of."""
    inner = getattr(gradient, "inner", None)
    return type(gradient or Own()) if inner is None else _source(inner)


REASONS = {
    "neurons": "the model has no neurons that a tap works with",
    "noise": "the model is not random",
    "no gradient": "not needed: the model gives gradients",
    "no logits": "not needed: the model gives logits",
}
MISSING = {
    "sequences": "a layer is stepped from outside, or has no single decay: its sequence cannot be replaced",
    "soft steps": "a neuron of the model sends several spikes a step, for which there is no soft step",
    "resets": "a neuron of the model has a reset whose gradient cannot be cut or kept",
    "step logits": "the model gives no logits of each step: its forward takes no per_step=True",
}
"""Why a member that changes this part of neurons is left out."""


def members(
    effort: str,
    threat: Threat,
    traits: frozenset[str],
    extra: Sequence[Member] = (),
    adaptive: Sequence[AdaptiveAttack] = (),
) -> tuple[list[Member], dict[str, str]]:
    """The members that attack a model with these traits under this threat, and the reason for each left out.

    ``adaptive``: the attacks made for the model's own defenses, if the effort does not have them. What an
    effort gets beside its suite comes before the last local search, which starts at the best points of all.
    """
    chosen, left = [], {}
    rows, more = list(SUITES[effort]), list[Member]()
    if effort != "autoattack":
        own = sorted(map(member_of, adaptive), key=lambda m: FULL.index(m) if m in FULL else len(FULL))
        for member in own:
            if not any(row.covers(member) for row in (*rows, *more)):
                more.append(member)
    if "noise" in traits and effort in ("full", "autoattack"):
        rows = [m for m in rows if m not in AUTOATTACK]
        more.extend(AUTOATTACK_RAND)
    if threat.norm == "l2" and effort in ("standard", "full"):
        more.append(C_AND_W)
    at = max((k for k, m in enumerate(rows) if m.family == LOCAL), default=len(rows))
    for member in [*rows[:at], *more, *extra, *rows[at:]]:
        part = getattr(member.gradient, "part", "")
        if member.needs and member.needs not in traits:
            left[member.id] = REASONS[member.needs]
        elif part and f"no {part}" in traits:
            left[member.id] = MISSING[part]
        else:
            chosen.append(member)
    return chosen, left


def fingerprint(effort: str, norm: str = "linf", random: bool = False) -> str:
    """The first 16 digits of a hash of all that a suite is made of, under a norm.

    ``random``: AutoAttack's protocol has another suite for random models.
    """
    suite = AUTOATTACK_RAND if random and effort == "autoattack" else SUITES[effort]
    parts = [
        VERSION,
        EOT_DRAWS[effort],
        [m.as_dict() for m in suite],
        *([norm, OTHER_NORMS] if norm != "linf" else []),
    ]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
