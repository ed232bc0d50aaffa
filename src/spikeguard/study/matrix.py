"""The study on the embedded images: every way to train, the same conditions, ranked on validation images, the best scored once on test images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from spikeguard import defenses as d
from spikeguard.auditing.audit import audit
from spikeguard.data.images import Dataset
from spikeguard.data.sources import load_data
from spikeguard.defenses import Defense
from spikeguard.errors import Interrupted, UserError
from spikeguard.records import SCHEMA, machine, read_json, write_json
from spikeguard.study.recipes import DEMO_GUARD, recipe
from spikeguard.threat import Linf
from spikeguard.training.checkpoint import RECORD, WEIGHTS
from spikeguard.training.load import load
from spikeguard.training.loop import Report, train
from spikeguard.training.recipe import Recipe
from spikeguard.training.setup import parts

MARK = "embedded.json"
EPS, FRONTIER = 25 / 255, (4, 8, 12, 16, 20, 25)
BEST = 5
ADVERSARY: dict[str, Any] = {"eps": 16 / 255, "steps": 2, "warmup": 0.25}
Tell = Callable[[str, int, int], None]

GUARD = DEMO_GUARD
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
    "DLIF": (d.DLIF(),),
    "DLIF + MPPD": (d.DLIF(), d.MPPD()),
    "DLIF + TV-l1": (d.DLIF(), d.MPPD(norm="l1", rho=2.5)),
    "MPD-SGR": (d.MPDSGR(),),
    "MPD-SGR, batch norm": (d.MPDSGR(moments="batch norm"),),
    "FEEL": (d.FEEL(leak_start=0.5),),
    "HoSNN": (d.HoSNN(),),
    "input noise": (d.InputNoise(),),
    "input quantisation": (d.InputQuantisation(),),
    "RandHet": (d.RandHet(),),
    "DSD": (d.DSD(),),
    "RAT": (d.RAT(),),
    "conversion": (d.Conversion(),),
    "EMA": (d.EMA(),),
}
"""What is trained with BPTT and with AT. Constants are the published ones where FIELD_GUIDE knows them, else the demo's."""
CRAFTED = ("own", "assg", "assg triangle", "bptr")
REGIMES: dict[str, tuple[tuple[Defense, ...], str]] = {
    "TRADES": ((d.TRADES(**ADVERSARY),), "mean"),
    "MART": ((d.MART(**ADVERSARY),), "mean"),
    "AT, loss of every step": ((d.AT(**ADVERSARY),), "per_step"),
    "temporal self-ensemble": ((d.TemporalEnsemble(**ADVERSARY),), "per_step"),
    "AT, crafted by ASSG": ((d.AT(**ADVERSARY, estimators=("assg",)),), "mean"),
    "AT, crafted by lot": ((d.AT(**ADVERSARY, estimators=CRAFTED),), "mean"),
    "AT, half clean": ((d.AT(**ADVERSARY, clean_share=0.5),), "mean"),
    "AT by FGSM": ((d.AT(eps=ADVERSARY["eps"], steps=1, warmup=ADVERSARY["warmup"], step_size=ADVERSARY["eps"]),), "mean"),
    "AT, early stopping": ((d.AT(**ADVERSARY), d.EarlyStopping(eps=EPS)), "mean"),
    "RAT + EMA, crafted by lot": ((d.AT(**ADVERSARY, estimators=CRAFTED), d.RAT(), d.EMA()), "mean"),
}


@dataclass(frozen=True)
class Settings:
    """How large the study is: ``seeds`` a cell, ``epochs`` of training, attacked images in validation and on test images."""

    seeds: int = 3
    epochs: int = 4
    ranked_on: int = 100
    scored_on: int = 200


@dataclass(frozen=True)
class Cell:
    """One network of the study."""

    group: str
    row: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        text = f"{self.group} {self.row} {self.seed}"
        return "".join(c if c.isalnum() else "-" for c in text.lower())


def cells(settings: Settings) -> Iterator[Cell]:
    """All networks, the first seed of all before the second of any."""
    base = replace(recipe("vanilla"), epochs=settings.epochs)
    at = d.AT(**ADVERSARY)
    for seed in range(settings.seeds):

        def cell(group: str, row: str, chosen: tuple[Defense, ...], loss: str = "mean", seed: int = seed) -> Cell:
            made = replace(base, name=f"{group} {row}", defenses=d.compose(*chosen), loss=loss, seed=seed)  # type: ignore[arg-type]
            return Cell(group, row, seed, made)

        for row, chosen in ROWS.items():
            yield cell("BPTT", row, chosen)
        for eps in FRONTIER:
            yield cell("frontier", f"AT {eps}/255", (replace(at, eps=eps / 255),))
            yield cell("frontier", f"TRADES {eps}/255", (d.TRADES(**{**ADVERSARY, "eps": eps / 255}),))
        for row, (chosen, loss) in REGIMES.items():
            yield cell("regimes", row, chosen, loss)
            yield cell("regimes", f"{row}, TGO", (*chosen, GUARD), loss)
        for row, chosen in ROWS.items():
            yield cell("AT", row, (at, *chosen))


def run(settings: Settings, out: Path, tell: Tell = lambda stage, done, total: None, stop: Event | None = None) -> dict[str, Any]:
    """Train and rank every cell that ``out`` does not hold yet, score the best; returns the record, which is written after every cell.

    UserError if ``out`` holds a study with other settings; Interrupted after ``stop``, with everything kept.
    """
    path = out / MARK
    wanted = {"epochs": settings.epochs, "ranked_on": settings.ranked_on, "scored_on": settings.scored_on}
    record: dict[str, Any] = (
        read_json(path) if path.exists() else {"schema": SCHEMA, "kind": "study", "settings": wanted, "eps": EPS, "cells": {}, "test": {}}
    )
    if record["settings"] != wanted:
        raise UserError(f"{out} holds a study with settings {record['settings']}, now {wanted}: choose another folder with --out")
    record["machine"] = {**machine(), "threads": torch.get_num_threads()}
    data = load_data("embedded")
    todo = list(cells(settings))
    record["wanted"] = [[c.group, c.row, c.seed] for c in todo]
    for number, cell in enumerate(todo):
        if cell.name in record["cells"]:
            continue
        record["cells"][cell.name] = _ranked(cell, settings, out, data, _staged(tell, f"{number + 1} of {len(todo)}: {cell.recipe.name}"), stop)
        write_json(path, record)
    for number, cell in enumerate(chosen := finalists(record, todo)):
        if cell.name in record["test"]:
            continue
        net = load(out / "runs" / cell.name)
        test = data.test.balanced(settings.scored_on)
        shown = _staged(tell, f"scoring {number + 1} of {len(chosen)}: {cell.recipe.name}")
        got = audit(net, test.pixels(), test.y, Linf(EPS), effort="standard", progress=shown, stop=stop, index=test.index)
        record["test"][cell.name] = _told(got.record)
        write_json(path, record)
    write_json(path, record)
    return record


def _staged(tell: Tell, what: str) -> Tell:
    return lambda stage, done, total: tell(f"{what}: {stage}", done, total)


def _ranked(cell: Cell, settings: Settings, out: Path, data: Dataset, tell: Tell, stop: Event | None) -> dict[str, Any]:
    folder = out / "runs" / cell.name
    if not (folder / WEIGHTS).exists():

        def progress(report: Report) -> None:
            tell("training", report.step, report.steps)

        train(cell.recipe, folder, resume=folder.exists(), data=data, progress=progress)
    net, done = load(folder), read_json(folder / RECORD)
    if stop is not None and stop.is_set():
        raise Interrupted(f"study stopped after {cell.recipe.name}; what is done is kept in {out}, go on with the same command")
    x, y = _held(cell, settings, data)
    got = audit(net, x, y, Linf(EPS), effort="quick", progress=tell, stop=stop)
    row = {"group": cell.group, "row": cell.row, "seed": cell.seed, "recipe": cell.recipe.values(), "seconds": done["cost"]["seconds"]}
    return {**row, "validation_accuracy": done.get("kept", done["epochs"][-1])["validation_accuracy"], **_told(got.record)}


def _held(cell: Cell, settings: Settings, data: Dataset) -> tuple[Tensor, Tensor]:
    held = parts(cell.recipe, data)[1]
    rows = torch.arange(min(settings.ranked_on, len(held)))
    return held.pixels()[rows], held.y[rows]


def _told(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "clean": record["clean"],
        "worst_case": record["worst_case"],
        "masking": record["masking"],
        "flags": [[f["id"], f["level"]] for f in record["flags"]],
        "suite": record["suite"],
        "audit_seconds": record["cost"]["seconds"],
    }


def means(record: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, float]]:
    """Per row of a group the means over the seeds that were run, and how many those are."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in record["cells"].values():
        found.setdefault((cell["group"], cell["row"]), []).append(cell)
    told = {}
    for key, cells_ in found.items():
        values = {
            "clean": [c["validation_accuracy"] for c in cells_],
            "robust": [c["worst_case"]["accuracy"] for c in cells_],
            "own": [c["masking"]["PGD-20"] for c in cells_],
            "seconds": [c["seconds"] for c in cells_],
        }
        told[key] = {**{k: sum(v) / len(v) for k, v in values.items()}, "seeds": len(cells_)}
    return told


def finalists(record: Mapping[str, Any], todo: list[Cell]) -> list[Cell]:
    """First-seed networks that are scored on test images: the best five by validation without error flags, then the frontier."""
    ranking = sorted(means(record).items(), key=lambda item: -item[1]["robust"])
    flagged = {(c["group"], c["row"]) for c in record["cells"].values() if any(level == "error" for _, level in c["flags"])}
    best = [key for key, _ in ranking if key[0] != "frontier" and key not in flagged][:BEST]
    order = [*best, *dict.fromkeys((c.group, c.row) for c in todo if c.group == "frontier")]
    first = {(c.group, c.row): c for c in todo if c.seed == 0 and c.name in record["cells"]}
    return [first[key] for key in order if key in first]
