"""Running the study: train and rank every network, confirm the best on fresh seeds, score the finalists once on test images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any

import torch

from spikeguard.auditing.audit import Audit, audit
from spikeguard.auditing.suite import Effort, Member, fingerprint
from spikeguard.data.sources import load_data
from spikeguard.errors import Interrupted, UserError
from spikeguard.records import SCHEMA, machine, read_json, write_json
from spikeguard.study import matrix
from spikeguard.study.frontier import best, complete, mean_of
from spikeguard.study.matrix import CONFIRMING, EPS, FRESH, LOW, MORE, MORE_AT_LAST, Cell, Settings, on_frontier
from spikeguard.threat import Linf
from spikeguard.training.checkpoint import RECORD
from spikeguard.training.load import load
from spikeguard.training.loop import Report, train
from spikeguard.training.setup import parts

MARK = "embedded.json"
Tell = Callable[[str, int, int], None]


class _Study:
    def __init__(self, settings: Settings, out: Path, tell: Tell, stop: Event | None, device: str | None) -> None:
        self.settings, self.out, self.tell, self.stop, self.device = settings, out, tell, stop, device
        self.path, self.data = out / MARK, load_data("embedded")
        wanted = {"epochs": settings.epochs, "ranked_on": settings.ranked_on, "scored_on": settings.scored_on}
        fresh: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": "study",
            "settings": wanted,
            "eps": EPS,
            "low": LOW,
            "cells": {},
            "confirmed": {},
            "test": {},
        }
        self.record = read_json(self.path) if self.path.exists() else fresh
        if self.record["settings"] != wanted:
            raise UserError(f"{out} holds a study with settings {self.record['settings']}, now {wanted}: choose another folder with --out")
        self.record["machine"] = {**machine(), "threads": torch.get_num_threads()}

    def run_all(self, todo: list[Cell], into: str) -> None:
        """Every network that is not there yet, or was made in another way."""
        for number, cell in enumerate(todo):
            if _same(self.record[into].get(cell.name), cell):
                continue
            self.record[into][cell.name] = self.ranked(cell, f"{number + 1} of {len(todo)}: {cell.recipe.name} {cell.seed}")
            write_json(self.path, self.record)

    def staged(self, what: str) -> Tell:
        """Progress of a part."""
        return lambda stage, done, total: self.tell(f"{what}: {stage}", done, total)

    def trained(self, cell: Cell, what: str) -> dict[str, Any]:
        """The record of the network's training, done now if it has not been."""
        folder = self.out / "runs" / cell.name
        if (folder / RECORD).exists() and read_json(folder / RECORD)["recipe"] != cell.recipe.values():
            shutil.rmtree(folder)  # ours, from another state of the matrix
        if not (folder / RECORD).exists():

            def progress(report: Report) -> None:
                self.tell(f"{what}: training", report.step, report.steps)

            try:
                train(cell.recipe, folder, resume=folder.exists(), device=self.device, data=self.data, progress=progress)
            except UserError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        if self.stop is not None and self.stop.is_set():
            raise Interrupted(f"study stopped after {cell.recipe.name}; what is done is kept in {self.out}, go on with the same command")
        return read_json(folder / RECORD)

    def audited(self, cell: Cell, images: Any, eps: float, effort: Effort, extra: tuple[Member, ...], what: str) -> Audit:
        """An audit of a trained network."""
        net = load(self.out / "runs" / cell.name, self.device or "cpu")
        images = images.to(net.mean.device)
        x, y = images.pixels(), images.y
        try:
            return audit(net, x, y, Linf(eps), effort=effort, progress=self.staged(what), stop=self.stop, index=images.index, extra=extra)
        except Interrupted as error:
            raise Interrupted(f"study stopped inside an audit, which begins anew next time; the rest is kept in {self.out}") from error

    def ranked(self, cell: Cell, what: str) -> dict[str, Any]:
        """What is kept of one network; ``failed`` with the reason where its training or its audit did."""
        row = {"group": cell.group, "row": cell.row, "seed": cell.seed, "made": _made(cell)}
        try:
            done = self.trained(cell, what)
        except UserError as error:
            return {**row, "failed": str(error)}
        held = parts(cell.recipe, self.data)[1]
        held = held.take(torch.arange(max(0, len(held) - self.settings.ranked_on), len(held)))  # early stopping looks at the first ones
        got = self.audited(cell, held, EPS, "quick", MORE, what).record
        kept = done.get("kept", done["epochs"][-1])["validation_accuracy"]
        row |= {"seconds": done["cost"]["seconds"], "validation_accuracy": kept, **told(got)}
        if cell.group == "BPTT":
            row["low"] = told(self.audited(cell, held, LOW, "quick", MORE, what).record)
        return row


def told(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the study keeps of an audit: ``right`` and ``right_clean`` per image, too."""
    if record["masking"] is None:
        return {"failed": "PGD-20 could not run", "flags": [[f["id"], f["level"]] for f in record["flags"]]}
    return {
        "clean": record["clean"],
        "worst_case": record["worst_case"],
        "masking": record["masking"],
        "right": record["right"],
        "right_clean": record["right_clean"],
        "flags": [[f["id"], f["level"]] for f in record["flags"]],
        "suite": record["suite"],
        "audit_seconds": record["cost"]["seconds"],
    }


def _made(cell: Cell) -> str:
    """A hash of what a cell's numbers depend on: its recipe, the suite, the further members, the budgets."""
    text = json.dumps([cell.recipe.values(), fingerprint("quick"), [m.told() for m in MORE], EPS, LOW], sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()[:16]


def _same(row: Mapping[str, Any] | None, cell: Cell) -> bool:
    return row is not None and row["made"] == _made(cell)


def run(
    settings: Settings,
    out: Path,
    tell: Tell = lambda stage, done, total: None,
    stop: Event | None = None,
    device: str | None = None,
    finish: bool = True,
) -> dict[str, Any]:
    """Train and rank every network that ``out`` does not hold yet; returns the record, which is written after every one.

    With ``finish`` the row with the highest mean gap over the frontier is trained and ranked again, with the frontier, on fresh seeds (only these say
    whether it lies above), and the finalists are scored once on test images; the list of both is then final. UserError if ``out`` holds a study with
    other settings; Interrupted after ``stop``, with everything kept.
    """
    study = _Study(settings, out, tell, stop, device)
    record, todo = study.record, list(matrix.cells(settings))
    record["wanted"] = [[c.group, c.row, c.seed] for c in todo]
    names = {c.name for c in todo}
    record["cells"] = {k: v for k, v in record["cells"].items() if k in names or v["seed"] >= settings.seeds}
    study.run_all(todo, "cells")
    write_json(study.path, record)
    if not finish:
        return record
    if "best" not in record:
        record["best"], record["finalists"] = best(record["cells"]), finalists(record, todo)
    if record["best"]:
        seeds = range(FRESH, FRESH + CONFIRMING)
        wanted = [c for c in matrix.cells(settings, seeds) if on_frontier({"group": c.group, "row": c.row}) or list(c.key) == record["best"]]
        study.run_all(wanted, "confirmed")
    by_name = {c.name: c for c in todo}
    quickest = sorted(record["finalists"], key=lambda name: record["cells"].get(name, {}).get("audit_seconds", 0.0))  # random networks take longest
    for number, name in enumerate(quickest):
        if name not in record["test"] and name in by_name:
            what = f"scoring {number + 1} of {len(quickest)}: {by_name[name].recipe.name}"
            test = study.data.test.balanced(settings.scored_on)
            record["test"][name] = told(study.audited(by_name[name], test, EPS, "standard", MORE_AT_LAST, what).record)
            write_json(study.path, record)
    write_json(study.path, record)
    return record


def finalists(record: Mapping[str, Any], todo: list[Cell]) -> list[str]:
    """Names of the first-seed networks that are scored on test images: the best five by validation, the frontier, no defence at all."""
    rows = complete(record["cells"])
    ranking = sorted((key for key in rows if not on_frontier(rows[key][0])), key=lambda k: -mean_of(rows[k], "worst_case"))
    first = {c.key: c.name for c in todo if c.seed == 0}
    frontier = [c.key for c in todo if c.seed == 0 and on_frontier({"group": c.group, "row": c.row}) and c.key in rows]
    return [first[key] for key in dict.fromkeys([*ranking[: matrix.BEST], *frontier, *([("BPTT", "none")] if ("BPTT", "none") in rows else [])])]
