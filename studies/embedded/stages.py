"""The stages of the study.

Train and rank every network, confirm the best on fresh seeds, score the finalists once on test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeguard.auditing.suite import Effort
from spikeguard.errors import UserError
from spikeguard.records.files import SCHEMA, read_json, write_json
from spikeguard.sweep.cells import Cell, Context
from spikeguard.sweep.workers import Work, put_in_order, rows_of
from studies.embedded import matrix
from studies.embedded.frontier import best, by_worst_case, complete, most_robust, whole
from studies.embedded.matrix import CONFIRMING, EPS, FRESH, LOW, Key, StudySettings, on_frontier
from studies.embedded.ranking import AuditInFull, Rank, Score, fingerprint_of

RECORD_NAME = "embedded.json"


@dataclass
class _Study:
    """The record of a study while its stages fill it."""

    context: Context
    settings: StudySettings
    jobs: int
    record: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.context.out / RECORD_NAME

    def save(self) -> None:
        write_json(self.path, self.record)

    def rank(self, cells: list[Cell], part: str) -> None:
        """Train and rank every network that the part lacks, or that was made in another way."""
        self._fill(part, Rank(self.settings.ranked_on), cells, self._missing(cells, part, "quick"))

    def score(self, cells: list[Cell]) -> None:
        """Audit on test images, once a network."""
        missing = [c for c in cells if c.name not in self.record["test"]]
        self._fill("test", Score(self.settings.scored_on), cells, missing)

    def audit_in_full(self, cells: list[Cell]) -> None:
        """Audit in full what was chosen."""
        missing = self._missing(cells, "looked_at", "full")
        self._fill("looked_at", AuditInFull(self.settings.ranked_on), cells, missing)

    def _missing(self, cells: list[Cell], part: str, effort: Effort) -> list[Cell]:
        rows = self.record[part]
        return [c for c in cells if rows.get(c.name, {}).get("made") != fingerprint_of(c, effort)]

    def _fill(self, part: str, work: Work, cells: list[Cell], missing: list[Cell]) -> None:
        for cell, row in rows_of(self.context, work, missing, self.jobs):
            self.record[part] = put_in_order(self.record[part], cell, row, cells)
            self.save()


def run(settings: StudySettings, context: Context, *, finish: bool = True, jobs: int = 1) -> dict[str, Any]:
    """Train and rank every network that ``context.out`` lacks; returns the record, written after each one.

    With ``finish`` three more stages follow. The row with the highest mean margin over the frontier and the
    row with the highest mean worst case are trained and ranked again, with the frontier, on fresh seeds: only
    these show whether they lie above it. The finalists are scored once on test images. The first networks of
    the two rows are audited in full on the images that ranked them. The choice is final until the study gets
    other rows or seeds; earlier choices stay in the record. ``jobs`` networks train at a time, each in a
    process with its share of the threads. UserError if the folder holds a study with other settings;
    Interrupted after ``context.stop``, with everything kept.
    """
    study = _Study(context, settings, jobs, _open(settings, context.out))
    record, cells = study.record, list(matrix.cells(settings))
    record["wanted"] = [[c.group, c.row, c.seed] for c in cells]
    names = {c.name for c in cells}
    record["cells"] = {k: v for k, v in record["cells"].items() if k in names or v["seed"] >= settings.seeds}
    study.rank(cells, "cells")
    study.save()
    if finish:
        _choose(record, cells)
        _finish(study, cells)
        study.save()
    return record


def _open(settings: StudySettings, out: Path) -> dict[str, Any]:
    """The record in a folder, or a new one."""
    path = out / RECORD_NAME
    values = {
        "epochs": settings.epochs,
        "ranked_on": settings.ranked_on,
        "scored_on": settings.scored_on,
    }
    new: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "study",
        "settings": values,
        "eps": EPS,
        "low": LOW,
        "cells": {},
        "confirmed": {},
        "test": {},
    }
    record = {"looked_at": {}, **(read_json(path) if path.exists() else new)}
    if record["settings"] != values:
        raise UserError(
            f"{out} holds a study with settings {record['settings']}, now {values}: choose another folder "
            "with --out"
        )
    return record


def _choose(record: dict[str, Any], cells: list[Cell]) -> None:
    """Choose the best rows and the finalists, unless these rows and seeds have chosen before."""
    among = sorted({": ".join(c.key) for c in cells})
    seeds = sorted({c["seed"] for c in whole(record["cells"]).values()})
    if (record.get("chosen_among"), record.get("chosen_on")) == (among, seeds):
        return
    record["best"], record["most_robust"] = best(record["cells"]), most_robust(record["cells"])
    record["finalists"] = finalists(record, cells)
    record["chosen_on"], record["chosen_among"] = seeds, among


def _finish(study: _Study, cells: list[Cell]) -> None:
    """Confirm what was chosen on fresh seeds, score the finalists, audit the chosen in full."""
    record, settings = study.record, study.settings
    chosen = {tuple(record[k]) for k in ("best", "most_robust") if record.get(k)}
    if chosen:
        before = {(c["group"], c["row"]) for c in record["confirmed"].values()}  # reported side by side
        fresh = matrix.cells(settings, range(FRESH, FRESH + CONFIRMING))
        study.rank([c for c in fresh if is_frontier(c) or c.key in chosen | before], "confirmed")
    by_name = {c.name: c for c in cells}

    def seconds(name: str) -> float:
        return float(record["cells"].get(name, {}).get("audit_seconds", 0.0))

    # stochastic networks take longest, so they come last
    study.score([by_name[name] for name in sorted(record["finalists"], key=seconds) if name in by_name])
    study.audit_in_full([c for c in cells if c.key in chosen and c.seed == 0])


def is_frontier(cell: Cell) -> bool:
    """Whether a network is a point of the frontier."""
    return on_frontier({"group": cell.group, "row": cell.row})


def finalists(record: Mapping[str, Any], cells: list[Cell]) -> list[str]:
    """Names of the first-seed networks that are scored on test images.

    The best five by validation, the frontier, no defense at all.
    """
    rows, ranking = complete(record["cells"]), by_worst_case(record["cells"])
    first = {c.key: c.name for c in cells if c.seed == 0}
    frontier = [c.key for c in cells if c.seed == 0 and is_frontier(c) and c.key in rows]
    plain: list[Key] = [("BPTT", "none")] if ("BPTT", "none") in rows else []
    return [first[key] for key in dict.fromkeys([*ranking[: matrix.BEST], *frontier, *plain])]
