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
from pathlib import Path
from typing import Any

import torch
from spikeguard.study.frontier import grouped, whole
from spikeguard.study.pages import page as study_page
from spikeguard.study.picture import picture

import spikeguard as sg
from spikeguard.defenses import DEFENSES, Defense
from spikeguard.records.files import SCHEMA, read_json, write_json
from spikeguard.runtime.machine import machine
from spikeguard.training.loop import Trainer
from spikeguard.training.recipes import recipe

ROOT = Path(__file__).parents[1]
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
        work[name] = lambda trainer=trainer: trainer.step(x, y)
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
    told = {
        "schema": SCHEMA,
        "kind": "defense costs",
        "machine": machine(),
        "rounds": ROUNDS,
        "steps": STEPS,
        "batch": 128,
        "factor": factor,
    }
    write_json(COSTS, {**told, "BPTT milliseconds": 1000 * statistics.median(seconds["BPTT"])})


def page() -> str:
    """The table."""
    costs_ = read_json(COSTS)["factor"] if COSTS.exists() else {}
    study = read_json(STUDY) if STUDY.exists() else None
    told = _means(whole(study["cells"])) if study else {}
    lines = [
        "# Defenses",
        "",
        "Written by `tools/defense_page.py`. Every defense is a frozen dataclass `sg.NAME(...)`, a name in "
        "recipes and a flag of `spikeguard train`",
        "(`--defenses.tgo.delta 0.3`); `sg.compose(...)` puts several together. Cost: time of a training "
        "step over BPTT's, default settings, the",
        "demo's network, batch 128, in the last quarter of the training (`results/defense-costs.json`); "
        "what early stopping and EMA do between",
        "epochs is not in it. Survives: worst case of the quick audit in %, clean accuracy in brackets, "
        "means over the seeds run: without",
        "adversarial training at 8/255, with it (PGD-2 at 16/255) at 25/255 (`results/embedded.json`, all "
        "of it in",
        "[results/embedded.md](results/embedded.md)). Defenses that are random at test are scored as means "
        "over draws.",
        "",
        "| name | class | idea | formula | source | cost | survives 8/255 | with AT, 25/255 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    none = [told.get((group, "none")) for group in ("BPTT", "AT")]
    lines.append(f"| | | no defense | | | 1.0 | {_share(none[0])} | {_share(none[1])} |")
    for name, kind in DEFENSES.items():
        row = kind.row
        alone = "" if row.group else _share(told.get(("BPTT", row.name)))
        survives = [alone, _share(told.get((row.group or "AT", row.name)))]
        about = " | ".join(text.replace("|", "\\|") for text in (kind.idea, kind.formula, kind.source))
        cost = f"{costs_[name]:.1f}" if name in costs_ else "not run"
        lines.append(f"| `{name}` | {kind.__name__} | {about} | {cost} | {' | '.join(survives)} |")
    return "\n".join([*lines, ""])


def _means(cells: dict[str, dict[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """Worst case and clean accuracy of every row, means over its seeds; rows without an error flag only."""
    rows = grouped(
        c for c in cells.values() if "failed" not in c and all(level != "error" for _, level in c["flags"])
    )
    told = {}
    for key, row in rows.items():
        told[key] = {
            "robust": sum(c["worst_case"]["accuracy"] for c in row) / len(row),
            "clean": sum(c["validation_accuracy"] for c in row) / len(row),
        }
        if "low" in row[0]:
            told[key]["low"] = sum(c["low"]["worst_case"]["accuracy"] for c in row) / len(row)
    return told


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
        record = read_json(Path(sys.argv[2]) / "embedded.json")
        write_json(STUDY, record)
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(study_page(record))
        RESULT.with_suffix(".svg").write_text(picture(record))
    PAGE.write_text(page())
