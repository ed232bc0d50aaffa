"""Running the study.

Train and rank every network, confirm the best on fresh seeds, score the finalists once on test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spikeguard.auditing.suite import Effort
from spikeguard.data.sources import load_data
from spikeguard.errors import UserError
from spikeguard.records.files import SCHEMA, read_json, write_json
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.runtime.stop import Stop
from spikeguard.study import matrix
from spikeguard.study.frontier import best, by_worst_case, complete, most_robust, whole
from spikeguard.study.matrix import CONFIRMING, EPS, FRESH, LOW, Cell, Settings, on_frontier
from spikeguard.study.ranking import Bench, fingerprint_of
from spikeguard.study.workers import Work, rows

MARK = "embedded.json"


class _Study:
    """The record of a study, and who works on it."""

    def __init__(self, bench: Bench, jobs: int) -> None:
        self.bench, self.jobs, self.path = bench, jobs, bench.out / MARK
        settings = bench.settings
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
        self.record = {"looked_at": {}, **(read_json(self.path) if self.path.exists() else fresh)}
        if self.record["settings"] != wanted:
            raise UserError(
                f"{bench.out} holds a study with settings {self.record['settings']}, now {wanted}: choose "
                "another folder with --out"
            )

    def rank(self, todo: list[Cell], into: str) -> None:
        """Every network that is not there yet, or was made in another way."""
        self._run("ranked", todo, self._missing(todo, into, "quick"), into)

    def score(self, todo: list[Cell]) -> None:
        """The one look at test images, for those that have not had it."""
        self._run("scored", todo, [c for c in todo if c.name not in self.record["test"]], "test")

    def look(self, todo: list[Cell]) -> None:
        """The longest look at what was chosen, before anybody believes it."""
        self._run("looked_at", todo, self._missing(todo, "looked_at", "full"), "looked_at")

    def _missing(self, todo: list[Cell], into: str, effort: Effort) -> list[Cell]:
        held = self.record[into]
        return [
            c for c in todo if c.name not in held or held[c.name].get("made") != fingerprint_of(c, effort)
        ]

    def _run(self, work: Work, todo: list[Cell], missing: list[Cell], into: str) -> None:
        place = {cell.name: number for number, cell in enumerate(todo)}
        for cell, row in rows(self.bench, work, missing, self.jobs):
            held = {
                **self.record[into],
                cell.name: row,
            }  # in the order of the matrix, whoever was ready first: ties and bounds depend on it
            self.record[into] = dict(sorted(held.items(), key=lambda item: place.get(item[0], len(place))))
            write_json(self.path, self.record)


def run(
    settings: Settings,
    out: Path,
    tell: Progress = no_progress,
    stop: Stop | None = None,
    device: str | None = None,
    finish: bool = True,
    jobs: int = 1,
) -> dict[str, Any]:
    """Train and rank every network that ``out`` does not hold yet; returns the record, which is written after
    every one.

    With ``finish`` two rows, the one with the highest mean gap over the frontier and the one with the highest
    mean worst case, are trained and ranked again, with the frontier, on fresh seeds (only these say whether
    they lie above); the finalists are scored once on test images; and the first networks of the two are
    looked at by 'full' on the images that ranked them. What is chosen is final until the study is given other
    rows or another seed, and what was asked of others before stays in the record. ``jobs``: networks trained
    and ranked at a time, each in a process of its own with its share of the threads. UserError if ``out``
    holds a study with other settings; Interrupted after ``stop``, with everything kept.
    """
    study = _Study(Bench(settings, out, load_data("embedded"), device, tell, stop), jobs)
    record, todo = study.record, list(matrix.cells(settings))
    record["wanted"] = [[c.group, c.row, c.seed] for c in todo]
    names = {c.name for c in todo}
    record["cells"] = {k: v for k, v in record["cells"].items() if k in names or v["seed"] >= settings.seeds}
    study.rank(todo, "cells")
    write_json(study.path, record)
    if not finish:
        return record
    among = sorted({": ".join(c.key) for c in todo})
    on = sorted({c["seed"] for c in whole(record["cells"]).values()})
    if (record.get("chosen_among"), record.get("chosen_on")) != (among, on):
        record["best"], record["most_robust"] = best(record["cells"]), most_robust(record["cells"])
        record["finalists"] = finalists(record, todo)
        record["chosen_on"], record["chosen_among"] = on, among
    chosen = {tuple(record[k]) for k in ("best", "most_robust") if record.get(k)}
    if chosen:
        seeds = range(FRESH, FRESH + CONFIRMING)
        asked = {
            (c["group"], c["row"]) for c in record["confirmed"].values()
        } | chosen  # all of them are told side by side
        study.rank(
            [
                c
                for c in matrix.cells(settings, seeds)
                if on_frontier({"group": c.group, "row": c.row}) or c.key in asked
            ],
            "confirmed",
        )
    by_name = {c.name: c for c in todo}
    quickest = sorted(
        record["finalists"], key=lambda name: record["cells"].get(name, {}).get("audit_seconds", 0.0)
    )  # random networks take longest
    study.score([by_name[name] for name in quickest if name in by_name])
    study.look([c for c in todo if c.key in chosen and c.seed == 0])
    write_json(study.path, record)
    return record


def finalists(record: Mapping[str, Any], todo: list[Cell]) -> list[str]:
    """Names of the first-seed networks that are scored on test images.

    The best five by validation, the frontier, no defense at all.
    """
    rows, ranking = complete(record["cells"]), by_worst_case(record["cells"])
    first = {c.key: c.name for c in todo if c.seed == 0}
    frontier = [
        c.key for c in todo if c.seed == 0 and on_frontier({"group": c.group, "row": c.row}) and c.key in rows
    ]
    return [
        first[key]
        for key in dict.fromkeys(
            [*ranking[: matrix.BEST], *frontier, *([("BPTT", "none")] if ("BPTT", "none") in rows else [])]
        )
    ]
