"""The study on the embedded images: which networks are trained. Every way to train, the same conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spikeguard import defenses as d
from spikeguard.auditing.suite import FULL, QUICK, STANDARD, Member
from spikeguard.defenses import Defense
from spikeguard.sweep.cells import Cell
from spikeguard.training.recipes import DEMO_GUARD, recipe

EPS, LOW = 25 / 255, 8 / 255
FRONTIER, BEST, CONFIRMING, FRESH = (4, 8, 12, 20, 25), 5, 5, 100
ADVERSARY: dict[str, Any] = {"eps": 16 / 255, "steps": 2, "warmup": 0.25}
_ADAPTIVE = {kind.adaptive for kind in d.DEFENSES.values()}
MORE: tuple[Member, ...] = tuple(m for m in FULL if m.key in _ADAPTIVE and m not in QUICK)
"""Every network meets what is adaptive to any of them, so that all rows stand under the same attacks."""
MORE_AT_LAST = tuple(m for m in FULL if m not in STANDARD and (m in QUICK or m in MORE))

GUARD = DEMO_GUARD
TWIN = "no spikes: the ANN twin"
ROWS: dict[str, tuple[Defense, ...]] = {
    "none": (),
    "MC": (replace(GUARD, sigma=0.0),),
    "NLIF": (replace(GUARD, lambda_max=0.0),),
    "TGO": (GUARD,),
    "TGO, noise in the band": (replace(GUARD, site="band"),),
    "TGO, by layer": (replace(GUARD, deltas=(0.3, 0.5, 0.7), sigmas=(0.09, 0.15, 0.2)),),
    "shift guard": (d.ShiftGuard(**{**ADVERSARY, "steps": 1, "step_size": ADVERSARY["eps"]}),),
    "first-layer guard": (d.FirstLayerGuard(eps=ADVERSARY["eps"]),),
    "SR": (d.SR(),),
    "StoG": (d.StoG(),),
    "MPPD": (d.MPPD(),),
    "DLIF": (d.DLIF(),),
    "DLIF + MPPD": (d.DLIF(), d.MPPD()),
    "DLIF + TV-l1": (d.DLIF(), d.MPPD(norm="l1", rho=2.5)),
    "MPD-SGR": (d.MPDSGR(),),
    "MPD-SGR, batch norm": (d.MPDSGR(moments="batch norm"),),
    "FEEL": (d.FEEL(leak_start=0.5),),
    "HoSNN": (d.HoSNN(),),
    "input noise": (d.InputNoise(),),
    "input quantization": (d.InputQuantization(),),
    "RandHet": (d.RandHet(),),
    "DSD": (d.DSD(),),
    "RAT": (d.RAT(),),
    "RAT + TGO": (d.RAT(), GUARD),
    "conversion": (d.Conversion(),),
    "conversion's neurons from the start": (d.Conversion(share=0.0),),
    "conversion's neurons + RAT": (d.Conversion(share=0.0), d.RAT()),
    "conversion's neurons + TGO": (d.Conversion(share=0.0), GUARD),
    "conversion's neurons + RAT + TGO": (d.Conversion(share=0.0), d.RAT(), GUARD),
    "TGO, noise when scored": (replace(GUARD, noise_at_eval=True),),
    "fitted surrogate": (d.FittedSurrogate(),),
    TWIN: (d.ANNTwin(),),
    f"{TWIN} + RAT": (d.ANNTwin(), d.RAT()),
    "EMA": (d.EMA(),),
}
"""What is trained with BPTT and with AT.

Constants are the published ones where they are known, else the demo's.
"""
CRAFTED = ("own", "assg", "assg triangle", "bptr")
REGIMES: dict[str, tuple[tuple[Defense, ...], str]] = {
    "TRADES": ((d.TRADES(**ADVERSARY),), "mean"),
    "TRADES, crafted by ASSG": ((d.TRADES(**ADVERSARY, estimators=("assg",)),), "mean"),
    "AT, crafted by ASSG": ((d.AT(**ADVERSARY, estimators=("assg",)),), "mean"),
    "AT, crafted by lot": ((d.AT(**ADVERSARY, estimators=CRAFTED),), "mean"),
    "RAT + EMA, crafted by lot": ((d.AT(**ADVERSARY, estimators=CRAFTED), d.RAT(), d.EMA()), "mean"),
    "MART": ((d.MART(**ADVERSARY),), "mean"),
    "AT, growing": ((d.AT(**ADVERSARY, eps_end=18 / 255, late_steps=4),), "mean"),
    "distillation": ((d.Distillation(**ADVERSARY),), "mean"),
    "distillation, conversion's neurons": ((d.Distillation(**ADVERSARY), d.Conversion(share=0.0)), "mean"),
    "AT, early stopping": ((d.AT(**ADVERSARY), d.EarlyStopping(eps=EPS)), "mean"),
    "AT, loss of every step": ((d.AT(**ADVERSARY),), "per_step"),
    "temporal self-ensemble": ((d.TemporalEnsemble(**ADVERSARY),), "per_step"),
    "AT, half clean": ((d.AT(**ADVERSARY, clean_share=0.5),), "mean"),
    "AT by FGSM, random start": (
        (d.AT(eps=ADVERSARY["eps"], steps=1, warmup=ADVERSARY["warmup"], step_size=ADVERSARY["eps"]),),
        "mean",
    ),
    "BPTT, loss of every step": ((), "per_step"),
}
Key = tuple[str, str]
AMONG_FRONTIER: tuple[Key, ...] = (("AT", "none"), ("regimes", "TRADES"))
"""The frontier's points at ADVERSARY's budget."""


@dataclass(frozen=True)
class StudySettings:
    """How large the study is.

    ``seeds`` a network, ``epochs`` of training, attacked images in validation and on test images.
    """

    seeds: int = 3
    epochs: int = 4
    ranked_on: int = 100
    scored_on: int = 200


def cells(settings: StudySettings, seeds: Sequence[int] | None = None) -> Iterator[Cell]:
    """All networks, the first seed of all before the second of any."""
    base = replace(recipe("vanilla"), epochs=settings.epochs)
    at = d.AT(**ADVERSARY)
    for seed in range(settings.seeds) if seeds is None else seeds:

        def cell(
            group: str, row: str, chosen: tuple[Defense, ...], loss: str = "mean", seed: int = seed
        ) -> Cell:
            made = replace(base, name=f"{group} {row}", defenses=d.compose(*chosen), loss=loss, seed=seed)  # type: ignore[arg-type]
            return Cell(group, row, seed, made)

        for row, chosen in ROWS.items():
            yield cell("BPTT", row, chosen)
        for eps in FRONTIER:
            yield cell("frontier", f"AT {eps}/255", (replace(at, eps=eps / 255),))
            yield cell("frontier", f"TRADES {eps}/255", (d.TRADES(**{**ADVERSARY, "eps": eps / 255}),))
        yield cell("AT", "none", (at,))
        for row, (chosen, loss) in REGIMES.items():
            yield cell("regimes", row, chosen, loss)
            yield cell("regimes", f"{row}, TGO", (*chosen, GUARD), loss)
        for row, chosen in ROWS.items():
            if chosen:
                yield cell("AT", row, (at, *chosen))


def on_frontier(cell: Mapping[str, Any]) -> bool:
    """Is it a point of the frontier?"""
    return cell["group"] == "frontier" or (cell["group"], cell["row"]) in AMONG_FRONTIER
