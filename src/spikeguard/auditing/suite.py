"""Suites of attacks as data: members, order, counts. Every change of them changes the suite's hash.

Cheap members come first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

from spikeguard import attacks
from spikeguard.auditing import named
from spikeguard.auditing.member import OTHER, OWN, Member
from spikeguard.gradients import (
    BPDA,
    BPTR,
    ENSEMBLE,
    EOT,
    HART,
    PDSG,
    RGA,
    Activity,
    LearnedBlend,
    MeanField,
    NoiseFree,
    PerStep,
    RandomSurrogate,
    SoftSpikes,
    SwapSurrogate,
    ThresholdFirst,
    ZerothOrder,
)
from spikeguard.surrogates import Atan, Rectangle, StraightThrough, Triangle

VERSION = "suite-v4"
Effort = Literal["quick", "standard", "full", "autoattack"]
EFFORTS: dict[str, int | None] = {"quick": 200, "standard": 1000, "full": None, "autoattack": 1000}
"""Number of images that an effort is meant for (None: all).

'autoattack' is that protocol alone, for comparison with the literature.
"""
EOT_DRAWS = {"quick": 4, "standard": 10, "full": 20, "autoattack": 20}
"""Gradients averaged in each step against a random model."""


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
    named.sapgd(20, 0.435, Atan()),
    named.sapgd(20, 0.8, Triangle()),
    named.pgd(10, OTHER, ("straight-through", "straight-through"), SwapSurrogate(StraightThrough())),
    named.pgd(10, OTHER, ("rectangle", "rectangle"), SwapSurrogate(Rectangle(1.0))),
    named.sapgd(40, 0.435, Atan(), start_from_first=True),
    named.sapgd(40, 0.435, Atan(), "margin", start_from_first=True),
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
    named.targeted(20, 3),
    Member(
        "pgd10-nes",
        "differences",
        attacks.pgd,
        {"steps": 10, "restarts": 1, "loss": "margin"},
        ZerothOrder(samples=20),
        needs="no gradient",
        title="PGD-10, NES, margin loss",
    ),
    named.block_search(400),
    SQUARE_200,
    Member("rays500", "labels", attacks.rays, {"queries": 500}, needs="no logits", title="RayS-500"),
)

_ENSEMBLE = {
    name: named.pgd(
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
    named.pgd(20, OTHER, ("pdsg", "PDSG"), PDSG()),
    BPDA_TARGETED,
    named.sapgd(100, 0.435, Atan(), restarts=RESTARTS),
    named.sapgd(100, 1.6, Triangle(), restarts=RESTARTS),
    named.sapgd(100, 0.435, Atan(), start_from_first=True, restarts=RESTARTS),
    named.block_search(1000, 6000),
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
    named.pgd(20, OWN, ("per-step", "per-step gradient"), PerStep(), "neurons"),
    *(m for name, m in _ENSEMBLE.items() if name != "triangle 0.5"),
    named.pgd(20, OTHER, ("random-surrogate", "random surrogate"), RandomSurrogate()),
    named.pgd(
        20,
        OTHER,
        ("atan-reset-detached", "Atan(4), reset detached"),
        SwapSurrogate(Atan(4.0), True),
        "neurons",
    ),
    named.pgd(
        20, OTHER, ("atan-reset-kept", "Atan(4), reset kept"), SwapSurrogate(Atan(4.0), False), "neurons"
    ),
    named.pgd(20, "rates", ("hart", "HART"), HART(0.5), "neurons"),
    named.pgd(20, "rates", ("rga", "RGA"), RGA(), "neurons"),
    named.pgd(20, "rates", ("bptr", "BPTR"), BPTR(), "neurons"),
    named.pgd(20, "blends", ("learned-blend", "learned blend"), LearnedBlend()),
    named.pgd(20, "activity", ("activity", "extreme activity"), Activity(), "neurons"),
    named.pgd(20, "soft spikes", ("mean-field", "mean field"), MeanField(), "neurons"),
    named.pgd(20, "soft spikes", ("soft-spikes", "soft spikes"), SoftSpikes(), "neurons"),
    named.pgd(20, "soft spikes", ("noise-free", "noise-free copy"), NoiseFree(Atan(4.0)), "noise"),
    named.sapgd(100, 0.435, Atan()),
    _THRESHOLD_FIRST,
    named.sapgd(100, 0.35, Atan()),
    named.sapgd(100, 0.8, Triangle()),
    named.sapgd(100, 0.435, Atan(), "margin", start_from_first=True),
    named.targeted(50, 9),
    named.sapgd(50, 0.435, Atan(), "margin", warm=True, start_from_first=True),
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
    named.sapgd(1000, 0.435, Atan()),
    named.block_search(10_000),
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
