"""docs/defenses.md: idea, formula, measured cost and what survives the audit of every defense, from records.

python tools/defense_page.py costs
    times one training step of each defense over one of BPTT: results/defense-costs.json
python tools/defense_page.py study FOLDER
    takes over the record of `spikeguard sweep`: results/embedded.json, docs/results/embedded.md and .svg
python tools/defense_page.py
    only writes docs/defenses.md
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import spikeguard as sg
from spikeguard.defenses import DEFENSES, Defense
from spikeguard.records.files import SCHEMA, read_json, write_json
from spikeguard.records.studies import StudyRecord, StudyRow
from spikeguard.report.markdown import bullets, table
from spikeguard.runtime.machine import machine
from spikeguard.training.recipes import recipe
from spikeguard.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))
from studies.embedded.frontier import finished_seeds, grouped, is_sound, mean_worst_case  # noqa: E402
from studies.embedded.page import page as study_page  # noqa: E402
from studies.embedded.picture import picture  # noqa: E402

COSTS, STUDY, PAGE = (
    ROOT / "results" / "defense-costs.json",
    ROOT / "results" / "embedded.json",
    ROOT / "docs" / "defenses.md",
)
RESULT = ROOT / "docs" / "results" / "embedded.md"
ROUNDS, STEPS = 5, 3


def costs() -> None:
    """Seconds of a training step of each defense over those of BPTT, interleaved: the median over rounds."""
    data, base = sg.load_data("embedded"), recipe("vanilla")
    work: dict[str, Callable[[], object]] = {}
    images = data.train.balanced(500)
    x, y = images.pixels()[:128], images.y[:128]
    for name, kind in [("BPTT", None), *DEFENSES.items()]:
        chosen: tuple[Defense, ...] = () if kind is None else (kind(),)
        loss = "per_step" if name == "temporal_ensemble" else "mean"
        trainer = Trainer(
            type(base)(**{**vars(base), "defenses": chosen, "loss": loss}), data, torch.device("cpu")
        )
        trainer.at.epoch = 3  # of four: thresholds move, converted neurons spike
        trainer.net.train()
        work[name] = partial(trainer.step, x, y)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(ROUNDS + 1):
        for name, go in work.items():
            begun = time.perf_counter()
            for _ in range(STEPS):
                go()
            if turn:  # the first round compiles
                seconds[name].append((time.perf_counter() - begun) / STEPS)
        print(f"round {turn} of {ROUNDS}", flush=True)
    factor = {
        name: statistics.median(s / b for s, b in zip(seconds[name], seconds["BPTT"], strict=True))
        for name in work
    }
    record = {
        "schema": SCHEMA,
        "kind": "defense costs",
        "machine": machine(),
        "rounds": ROUNDS,
        "steps": STEPS,
        "batch": 128,
        "factor": factor,
    }
    write_json(COSTS, {**record, "BPTT milliseconds": 1000 * statistics.median(seconds["BPTT"])})


HEADER = ("name", "class", "idea", "formula", "source", "cost", "survives 8/255", "with AT, 25/255")
NOTES = (
    "Every defense is a frozen dataclass of `sg.defenses`, a name in recipes and a flag of `spikeguard "
    "train` (`--defenses.tgo.delta 0.3`). `sg.compose(...)` combines several.",
    "cost: time of a training step over that of BPTT, with default settings, the demo's network, batch 128, "
    "in the last quarter of the training (`results/defense-costs.json`). What early stopping and EMA do "
    "between epochs is not included.",
    "survives: worst case of the quick audit in %, clean accuracy in brackets, means over seeds; without "
    "adversarial training at 8/255, with it (PGD-2 at 16/255) at 25/255. The study has all numbers: "
    "[results/embedded.md](results/embedded.md).",
    "Defenses that are random at test time are scored as means over draws.",
    "Made by `tools/defense_page.py` from `results/embedded.json`.",
)


def page() -> str:
    """The table of defenses."""
    costs_ = read_json(COSTS)["factor"] if COSTS.exists() else {}
    study = StudyRecord.read(STUDY) if STUDY.exists() else None
    means = _means(finished_seeds(study.cells)) if study else {}
    plain = [_share(means.get((group, "none"))) for group in ("BPTT", "AT")]
    rows = [["", "", "no defense", "", "", "1.0", *plain]]
    for name, kind in DEFENSES.items():
        row = kind.row
        alone = "" if row.group else _share(means.get(("BPTT", row.name)))
        about = [text.replace("|", "\\|") for text in (kind.idea, kind.formula, kind.source)]
        cost = f"{costs_[name]:.1f}" if name in costs_ else "not run"
        with_at = _share(means.get((row.group or "AT", row.name)))
        rows.append([f"`{name}`", kind.__name__, *about, cost, alone, with_at])
    return "\n".join(["# Defenses", "", *table(HEADER, rows), "", *bullets(NOTES), ""])


def _means(cells: dict[str, StudyRow]) -> dict[tuple[str, str], dict[str, float]]:
    """Worst case and clean accuracy of every row, means over its seeds; rows without an error flag only."""
    means = {}
    for key, row in grouped(c for c in cells.values() if is_sound(c)).items():
        clean = [c.validation_accuracy or 0.0 for c in row]
        means[key] = {"robust": mean_worst_case(row), "clean": sum(clean) / len(row)}
        if row[0].low:
            means[key]["low"] = sum(c.low.worst_case.value for c in row if c.low) / len(row)
    return means


def _share(values: dict[str, float] | None) -> str:
    return (
        "not run"
        if values is None
        else f"{100 * values.get('low', values['robust']):.1f} ({100 * values['clean']:.1f})"
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["costs"]:
        costs()
    if sys.argv[1:2] == ["study"]:
        record = StudyRecord.read(Path(sys.argv[2]) / "embedded.json")
        record.write(STUDY)
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(study_page(record))
        RESULT.with_suffix(".svg").write_text(picture(record))
    PAGE.write_text(page())
