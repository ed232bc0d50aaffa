"""One network of the study: trained, audited, and what is kept of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from spikeguard.auditing.audit import Audit, audit
from spikeguard.auditing.suite import Effort, Member, fingerprint
from spikeguard.data.images import Dataset, Images
from spikeguard.defenses import TGO, Defense, InputNoise, InputQuantization, RandHet, StoG
from spikeguard.errors import Interrupted, UserError
from spikeguard.records.files import read_json
from spikeguard.runtime.machine import machine
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.runtime.stop import Stop
from spikeguard.study.matrix import EPS, LOW, MORE, MORE_AT_LAST, Cell, Settings
from spikeguard.threat import Linf
from spikeguard.training.builder import pick_device, training_parts
from spikeguard.training.checkpoint import RECORD
from spikeguard.training.load import load
from spikeguard.training.loop import Report, train

RANDOM = (InputNoise, InputQuantization, RandHet, StoG)  # when scored, too, as is TGO whose noise stays on
# gradients averaged without hurrying an estimator's schedule, inputs kept on the grid
JUDGE_VERSION = "random models, second version"
DEFAULTS_OF_OLD_RECIPES: dict[str, Any] = {
    "eps_end": None,
    "late_steps": None,
    "late_share": 0.3,
}  # fields that older recipes lack, and what they mean there
GO_ON = "what is done is kept, go on with the same command"


@dataclass
class Bench:
    """Where networks are made and judged: their folder, the images, and who hears of it."""

    settings: Settings
    out: Path
    data: Dataset
    device: str | None
    tell: Progress = no_progress
    stop: Stop | None = None

    def staged(self, what: str) -> Progress:
        """Progress of a part."""
        return lambda stage, done, total: self.tell(f"{what}: {stage}", done, total)

    def trained(self, cell: Cell, what: str) -> dict[str, Any]:
        """The record of the network's training, done now if it has not been."""
        folder = self.out / "runs" / cell.name
        if (folder / RECORD).exists() and _told(read_json(folder / RECORD)["recipe"]) != _told(
            cell.recipe.values()
        ):
            shutil.rmtree(folder)  # ours, from another state of the matrix
        self._go_on()
        if folder.exists() and not (folder / RECORD).exists():
            try:
                self._train(cell, folder, True, what)
            except (
                UserError
            ):  # begun with other threads or on another machine: it could not go on to the same bits
                shutil.rmtree(folder)
        if not folder.exists():
            try:
                self._train(cell, folder, False, what)
            except UserError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        self._go_on()
        return read_json(folder / RECORD)

    def _train(self, cell: Cell, folder: Path, resume: bool, what: str) -> None:
        def progress(report: Report) -> None:
            self.tell(f"{what}: training", report.step, report.steps)

        try:
            train(cell.recipe, folder, resume, self.device, data=self.data, progress=progress, stop=self.stop)
        except Interrupted as error:
            raise Interrupted(f"study stopped inside the training of {cell.recipe.name}; {GO_ON}") from error

    @property
    def stopped(self) -> bool:
        """Has somebody asked for an end?"""
        return self.stop is not None and self.stop.is_set()

    def _go_on(self) -> None:
        if self.stopped:
            raise Interrupted(f"study stopped; {GO_ON}")

    def here(self) -> dict[str, Any]:
        """Device, or instruction sets and threads.

        They decide about the last bits, and so about the network that is trained.
        """
        if pick_device(self.device).type == "cuda":
            return {"device": torch.cuda.get_device_name(0)}
        return {"instructions": list(machine().instructions), "threads": torch.get_num_threads()}

    def audited(
        self, cell: Cell, images: Any, eps: float, effort: Effort, what: str, out: Path | None = None
    ) -> Audit:
        """An audit of a trained network; with ``out`` it goes on where it stopped."""
        place = pick_device(self.device)
        net = load(self.out / "runs" / cell.name, str(place))
        images = images.to(place)
        x, y, extra = images.pixels(), images.y, _further(effort)
        try:
            return audit(
                net,
                x,
                y,
                Linf(eps),
                effort=effort,
                out=out,
                progress=self.staged(what),
                stop=self.stop,
                index=images.index,
                extra=extra,
            )
        except Interrupted as error:
            raise Interrupted(
                f"study stopped inside an audit{'' if out else ', which begins anew'}; {GO_ON}"
            ) from error

    def ranked(self, cell: Cell, what: str) -> dict[str, Any]:
        """What is kept of one network; ``failed`` with the reason where its training or its audit did."""
        row = {"group": cell.group, "row": cell.row, "seed": cell.seed, "made": fingerprint_of(cell)}
        try:
            done = self.trained(cell, what)
        except UserError as error:
            return {**row, "failed": str(error)}
        held = self.held(cell)
        got = self.audited(cell, held, EPS, "quick", what).record
        kept = done.get("kept", done["epochs"][-1])["validation_accuracy"]
        row |= {"seconds": done["cost"]["seconds"], "validation_accuracy": kept, **told(got)}
        if cell.group == "BPTT":
            row["low"] = told(self.audited(cell, held, LOW, "quick", what).record)
        return row | {"machine": self.here()}

    def held(self, cell: Cell) -> Images:
        """The validation images that rank; early stopping looks at the first ones."""
        images = training_parts(cell.recipe, self.data)[1]
        return images.select(torch.arange(max(0, len(images) - self.settings.ranked_on), len(images)))

    def looked_at(self, cell: Cell, what: str) -> dict[str, Any]:
        """The longest look there is, ``full``, at the images that ranked the network."""
        done = self.trained(cell, what)
        held, folder = self.held(cell), self.out / "audits" / cell.name
        try:
            got = self.audited(cell, held, EPS, "full", what, folder).record
        except UserError:  # begun on a network that was lost since: it cannot go on
            shutil.rmtree(folder, ignore_errors=True)
            got = self.audited(cell, held, EPS, "full", what, folder).record
        return {**self._later(cell, "full", done, got), "members": len(got["members"])}

    def scored(self, cell: Cell, what: str) -> dict[str, Any]:
        """The one look at test images."""
        done = self.trained(cell, what)  # anew, where only the record is left
        test = self.data.test.balanced(self.settings.scored_on)
        return self._later(cell, "standard", done, self.audited(cell, test, EPS, "standard", what).record)

    def _later(
        self, cell: Cell, effort: Effort, done: Mapping[str, Any], got: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            **told(got),
            "made": fingerprint_of(cell, effort),
            "machine": self.here(),
            "seconds": done["cost"]["seconds"],
        }


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


def fingerprint_of(cell: Cell, effort: Effort = "quick") -> str:
    """A hash of what a cell's numbers depend on.

    Its recipe, the suite, the further members, the budgets, the way random models are judged.
    """
    training_parts: list[Any] = [
        _told(cell.recipe.values()),
        fingerprint(effort),
        [m.told() for m in _further(effort)],
        EPS,
        LOW,
    ]
    if any(_random(d) for d in cell.recipe.defenses):
        training_parts.append(JUDGE_VERSION)
    text = json.dumps(training_parts, sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()[:16]


def _further(effort: Effort) -> tuple[Member, ...]:
    """The members that an audit of the study has beside the suite's."""
    return {"quick": MORE, "standard": MORE_AT_LAST}.get(effort, ())


def _random(defense: Defense) -> bool:
    return isinstance(defense, RANDOM) or (isinstance(defense, TGO) and defense.noise_at_eval)


def _told(values: Any) -> Any:
    """Settings without what recipes from before these fields existed did not say either."""
    if not isinstance(values, dict):
        return values
    return {
        k: _told(v)
        for k, v in values.items()
        if k not in DEFAULTS_OF_OLD_RECIPES or v != DEFAULTS_OF_OLD_RECIPES[k]
    }
