"""The study on the embedded images: which networks are trained. Every way to train, the same conditions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from spikeguard import defenses as d
from spikeguard.attacks import sapgd
from spikeguard.attacks.adaptive import SHARPEST, THRESHOLD_FIRST, AdaptiveAttack
from spikeguard.auditing.choice import member_of
from spikeguard.auditing.member import LOCAL, Member
from spikeguard.auditing.suite import FULL, QUICK, STANDARD
from spikeguard.defenses import DEFENSES, Defense
from spikeguard.defenses.crafting import ADVERSARY as ADVERSARY
from spikeguard.gradients import BPDA
from spikeguard.surrogates import Atan
from spikeguard.sweep.cells import Cell
from spikeguard.training.recipe import Recipe
from spikeguard.training.recipes import DEMO_GUARD, recipe

EPS, LOW = 25 / 255, 8 / 255
FRONTIER, BEST, CONFIRMING, FRESH = (4, 8, 12, 20, 25), 5, 5, 100
MORE: tuple[Member, ...] = (member_of(SHARPEST), member_of(THRESHOLD_FIRST))
"""Every network meets these beside the suite, so that all rows stand under the same attacks."""
BPDA_40 = AdaptiveAttack(
    "sapgd40-bpda-margin",
    "SA-PGD-40, BPDA, margin loss",
    sapgd,
    {"steps": 40, "loss": "margin"},
    BPDA(Atan(4.0)),
    "The backward pass steps over the rounding.",
)
MORE_AT_LAST = tuple(m for m in FULL if m not in STANDARD and m.family != LOCAL and (m in QUICK or m in MORE))

GUARD = DEMO_GUARD
TWIN = d.ANNTwin.row.name
VARIATIONS: dict[str, tuple[Defense, ...]] = {
    "none": (),
    "MC": (replace(GUARD, sigma=0.0),),
    "NLIF": (replace(GUARD, lambda_max=0.0),),
    "TGO, noise in the band": (replace(GUARD, site="band"),),
    "TGO, by layer": (replace(GUARD, deltas=(0.3, 0.5, 0.7), sigmas=(0.09, 0.15, 0.2)),),
    "TGO, noise when scored": (replace(GUARD, noise_at_eval=True),),
    "DLIF + MPPD": (d.DLIF(), d.MPPD()),
    "DLIF + TV-l1": (d.DLIF(), d.MPPD(norm="l1", rho=2.5)),
    "MPD-SGR, batch norm": (d.MPDSGR(moments="batch norm"),),
    "RAT + TGO": (d.RAT(), GUARD),
    "conversion's neurons from the start": (d.Conversion(share=0.0),),
    "conversion's neurons + RAT": (d.Conversion(share=0.0), d.RAT()),
    "conversion's neurons + TGO": (d.Conversion(share=0.0), GUARD),
    "conversion's neurons + RAT + TGO": (d.Conversion(share=0.0), d.RAT(), GUARD),
    f"{TWIN} + RAT": (d.ANNTwin(), d.RAT()),
}
"""Rows beside those that the defenses name themselves: other settings, and several defenses together."""
ORDER = (
    *("none", "MC", "NLIF", "TGO", "TGO, noise in the band", "TGO, by layer", "shift guard"),
    *("first-layer guard", "SR", "StoG", "MPPD", "DLIF", "DLIF + MPPD", "DLIF + TV-l1", "MPD-SGR"),
    *("MPD-SGR, batch norm", "FEEL", "HoSNN", "input noise", "input quantization", "RandHet", "DSD"),
    *("RAT", "RAT + TGO", "conversion", "conversion's neurons from the start"),
    *("conversion's neurons + RAT", "conversion's neurons + TGO", "conversion's neurons + RAT + TGO"),
    *("TGO, noise when scored", "fitted surrogate", TWIN, f"{TWIN} + RAT", "EMA"),
)
"""The order in which rows are run; those of newer defenses follow."""


def rows() -> dict[str, tuple[Defense, ...]]:
    """What is trained with BPTT and with AT: the rows of all defenses and the variations.

    Constants are the published ones where they are known, else the demo's.
    """
    own = {k.row.name: (k(**k.row.settings),) for k in DEFENSES.values() if not k.row.group and k.row.name}
    all_ = {**own, **VARIATIONS}
    return {name: all_[name] for name in (*ORDER, *(n for n in all_ if n not in ORDER))}


CRAFTED = ("own", "assg", "assg triangle", "bptr")
AT_VARIATIONS: dict[str, tuple[tuple[Defense, ...], str]] = {
    "TRADES, crafted by ASSG": ((d.TRADES(**ADVERSARY, estimators=("assg",)),), "mean"),
    "AT, crafted by ASSG": ((d.AT(**ADVERSARY, estimators=("assg",)),), "mean"),
    "AT, crafted by lot": ((d.AT(**ADVERSARY, estimators=CRAFTED),), "mean"),
    "RAT + EMA, crafted by lot": ((d.AT(**ADVERSARY, estimators=CRAFTED), d.RAT(), d.EMA()), "mean"),
    "AT, growing": ((d.AT(**ADVERSARY, eps_end=18 / 255, late_steps=4),), "mean"),
    "distillation, conversion's neurons": ((d.Distillation(**ADVERSARY), d.Conversion(share=0.0)), "mean"),
    "AT, loss of every step": ((d.AT(**ADVERSARY),), "per_step"),
    "AT, half clean": ((d.AT(**ADVERSARY, clean_share=0.5),), "mean"),
    "AT by FGSM, random start": (
        (d.AT(eps=ADVERSARY["eps"], steps=1, warmup=ADVERSARY["warmup"], step_size=ADVERSARY["eps"]),),
        "mean",
    ),
    "BPTT, loss of every step": ((), "per_step"),
}
REGIME_ORDER = (
    *("TRADES", "TRADES, crafted by ASSG", "AT, crafted by ASSG", "AT, crafted by lot"),
    *("RAT + EMA, crafted by lot", "MART", "AT, growing", "distillation"),
    *("distillation, conversion's neurons", "AT, early stopping", "AT, loss of every step"),
    *("temporal self-ensemble", "AT, half clean", "AT by FGSM, random start", "BPTT, loss of every step"),
)


def regimes() -> dict[str, tuple[tuple[Defense, ...], str]]:
    """Other ways to train, and the loss of each; they are run with and without TGO."""
    own = {
        k.row.name: ((*k.row.beside, k(**k.row.settings)), k.row.loss)
        for k in DEFENSES.values()
        if k.row.group == "regimes"
    }
    all_ = {**own, **AT_VARIATIONS}
    return {name: all_[name] for name in (*REGIME_ORDER, *(n for n in all_ if n not in REGIME_ORDER))}


Key = tuple[str, str]
AMONG_FRONTIER: tuple[Key, ...] = (("AT", "none"), ("regimes", "TRADES"))
"""The frontier's points at ADVERSARY's budget."""


@dataclass(frozen=True)
class StudySize:
    """How large the study is.

    ``seeds`` a network, ``epochs`` of training, attacked images in validation and on test images.
    """

    seeds: int = 3
    epochs: int = 4
    ranked_on: int = 100
    scored_on: int = 200


def cells(settings: StudySize, seeds: Sequence[int] | None = None) -> Iterator[Cell]:
    """All networks, the first seed of all before the second of any."""
    base = replace(recipe("vanilla"), epochs=settings.epochs)
    at = d.AT(**ADVERSARY)
    for seed in range(settings.seeds) if seeds is None else seeds:

        def cell(
            group: str, row: str, chosen: tuple[Defense, ...], loss: str = "mean", seed: int = seed
        ) -> Cell:
            made = replace(base, name=f"{group} {row}", defenses=d.compose(*chosen), loss=loss, seed=seed)  # type: ignore[arg-type]
            return Cell(group, row, seed, made)

        for row, chosen in rows().items():
            yield cell("BPTT", row, chosen)
        for eps in FRONTIER:
            yield cell("frontier", f"AT {eps}/255", (replace(at, eps=eps / 255),))
            yield cell("frontier", f"TRADES {eps}/255", (d.TRADES(**{**ADVERSARY, "eps": eps / 255}),))
        yield cell("AT", "none", (at,))
        for row, (chosen, loss) in regimes().items():
            yield cell("regimes", row, chosen, loss)
            yield cell("regimes", f"{row}, TGO", (*chosen, GUARD), loss)
        for row, chosen in rows().items():
            if chosen:
                yield cell("AT", row, (at, *chosen))


def adaptive_attacks(recipe: Recipe) -> tuple[AdaptiveAttack, ...]:
    """The attacks that audits of the study run because of a recipe's defenses, since its first row.

    Audits of single networks run ``defense.adaptive_attacks()`` instead.
    """
    return tuple(map(_adaptive, recipe.defenses))


def _adaptive(defense: Defense) -> AdaptiveAttack:
    if isinstance(defense, (d.TGO, d.MPDSGR, d.ShiftGuard, d.FirstLayerGuard)):
        return THRESHOLD_FIRST
    return BPDA_40 if isinstance(defense, d.InputQuantization) else SHARPEST


def on_frontier(key: Key) -> bool:
    """Whether a row (group, name) is a point of the frontier."""
    return key[0] == "frontier" or key in AMONG_FRONTIER


def title_of(row: str) -> str:
    """A row's name as pages print it. Names themselves are keys of records."""
    return row.replace("crafted by lot", "crafted by a random estimator")
