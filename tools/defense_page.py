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
from spikeguard.runtime.machine import machine
from spikeguard.training.loop import _Trainer
from spikeguard.training.recipes import recipe
from studies.embedded.frontier import finished_seeds, grouped, is_sound, mean_worst_case
from studies.embedded.page import page as study_page
from studies.embedded.picture import picture

ROOT = Path(__file__).parents[1]
COSTS, STUDY, PAGE = (
    ROOT / "results" / "defense-costs.json",
    ROOT / "results" / "embedded.json",
    ROOT / "docs" / "defenses.md",
)
RESULT = ROOT / "docs" / "results" / "embedded.md"
ROUNDS, STEPS = 5, 3

ABOUT: dict[str, tuple[str, str, str]] = {  # idea, formula, source
    "tgo": (
        "potentials away from the threshold, noisy firing",
        "L + lambda sum_l mean max(0, delta - \\|u\\|); s = step(u + sigma xi)",
        "arXiv 2602.20548",
    ),
    "at": ("train on adversaries", "L(x'), x' by PGD on L", "Madry et al., ICLR 2018"),
    "trades": (
        "small divergence between clean and disturbed outputs",
        "L(x) + beta tau^2 KL(p(x) \\|\\| p(x'))",
        "Zhang et al., ICML 2019",
    ),
    "mart": (
        "divergence weighed by doubt",
        "BCE(x') + beta KL(p \\|\\| p') (1 - p_y)",
        "Wang et al., ICLR 2020",
    ),
    "rat": (
        "singular values towards 1",
        "W <- (1 + beta) W - beta W W^T W after every step",
        "Ding et al., NeurIPS 2022",
    ),
    "temporal_ensemble": (
        "time steps as an ensemble, minimal version of our own",
        "CE of all steps at the adversary of one + c KL(mean \\|\\| z_t)",
        "after arXiv 2508.11279",
    ),
    "distillation": (
        "ours in this form: a robust ANN, trained first, is the teacher",
        "(1 - c) KL(T(x) \\|\\| S(x')) + c KL(T(x) \\|\\| S(x))",
        "after Zi et al., ICCV 2021; STUDY",
    ),
    "ema": ("averaged weights, batch norm estimated anew", "w <- d w + (1 - d) now", "common"),
    "early_stopping": (
        "keep the most robust epoch",
        "max over epochs of validation accuracy under ASSG + SA-PGD-20",
        "ours in this form",
    ),
    "sr": (
        "flat class probability along its gradient's sign",
        "L + w mean ((f(x + h v) - f(x)) / h)^2",
        "Liu et al., ICML 2024",
    ),
    "stog": (
        "learned random gates behind neurons",
        "s <- s b, b ~ Bernoulli(p); L + gamma sum p^2 / 2",
        "Ding et al., AAAI 2024",
    ),
    "dlif": (
        "a trained gain of the current per layer and step",
        "H = decay V + p[t] I[t]",
        "Ding et al., ICML 2024",
    ),
    "mppd": (
        "small difference of the last layer's potentials",
        "L + rho mean e^2 (l2) or \\|e\\| (l1), e[t] = decay e[t-1] + I - I'",
        "ICML 2024; ICLR 2026",
    ),
    "mpd_sgr": (
        "little probability mass inside the surrogate's support",
        "L + eta mean [Phi((mu + g)/s) - Phi((mu - g)/s)]",
        "arXiv 2511.12199",
    ),
    "feel": (
        "low-pass narrowing over time, trained leak per neuron and step",
        "x_t = IFFT(M_t FFT(x)); H = leak[t] V + I",
        "Xu et al., NeurIPS 2024",
    ),
    "hosnn": (
        "thresholds that hold potentials where they were",
        "theta <- theta + rate (H - H*)",
        "arXiv 2308.10373",
    ),
    "input_noise": (
        "fresh noise on the image at every step",
        "x_t = x + sigma N(0, 1)",
        "after RSC-SNN, ACM MM 2024",
    ),
    "input_quantization": ("pixels rounded by lot", "floor(x (k - 1) + U) / (k - 1)", "common"),
    "randhet": ("random decays", "H = sigmoid(r) V + (1 - sigmoid(r)) I, r ~ N(0, sigma^2)", "iScience 2025"),
    "dsd": ("gradients without their dominant direction", "G <- G - s1 u1 v1^T", "ICLR 2026"),
    "conversion": (
        "a quantized ANN first, then spikes",
        "clip(floor(I T / theta + 1/2) / T, 0, 1), then soft reset from theta / 2",
        "Bu et al., ICLR 2022",
    ),
    "ann_twin": ("no defense, a yardstick: the same layers without spikes", "ReLU(I), one step", "MEASURING"),
    "fitted_surrogate": (
        "ours: the training surrogate as wide as a layer's potentials are large",
        "sharpness = 1 / (reach mean \\|u\\|)",
        "STUDY",
    ),
    "shift_guard": (
        "ours: potentials beyond what the attack moves them",
        "L + lambda sum_l mean max(0, m_c - sign(u) u')",
        "STUDY",
    ),
    "first_layer_guard": (
        "ours: first layer beyond the farthest attainable shift",
        "L + lambda mean max(0, eps \\|\\|w_c\\|\\|_1 g_c D_t - \\|u\\|)",
        "STUDY",
    ),
}
ROWS = {  # the rows of the study that speak of a defense: without and with adversarial training
    "tgo": "TGO",
    "rat": "RAT",
    "sr": "SR",
    "stog": "StoG",
    "dlif": "DLIF",
    "mppd": "MPPD",
    "mpd_sgr": "MPD-SGR",
    "feel": "FEEL",
    "hosnn": "HoSNN",
    "input_noise": "input noise",
    "input_quantization": "input quantization",
    "randhet": "RandHet",
    "dsd": "DSD",
    "conversion": "conversion",
    "ann_twin": "no spikes: the ANN twin",
    "fitted_surrogate": "fitted surrogate",
    "shift_guard": "shift guard",
    "first_layer_guard": "first-layer guard",
    "ema": "EMA",
}
ALONE = {
    "at": ("AT", "none"),
    "trades": ("regimes", "TRADES"),
    "mart": ("regimes", "MART"),
    "temporal_ensemble": ("regimes", "temporal self-ensemble"),
    "early_stopping": ("regimes", "AT, early stopping"),
    "distillation": ("regimes", "distillation"),
}


def costs() -> None:
    """Seconds of a training step of each defense over those of BPTT, interleaved: the median over rounds."""
    data, base = sg.load_data("embedded"), recipe("vanilla")
    work: dict[str, Callable[[], object]] = {}
    images = data.train.balanced(500)
    x, y = images.pixels()[:128], images.y[:128]
    for name, kind in [("BPTT", None), *DEFENSES.items()]:
        chosen: tuple[Defense, ...] = () if kind is None else (kind(),)
        loss = "per_step" if name == "temporal_ensemble" else "mean"
        trainer = _Trainer(
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
    study = StudyRecord.read(STUDY) if STUDY.exists() else None
    told = _means(finished_seeds(study.cells)) if study else {}
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
        idea, formula, source = ABOUT[name]
        keys = [ALONE[name]] if name in ALONE else [("BPTT", ROWS[name]), ("AT", ROWS[name])]
        survives = ["" if name in ALONE else _share(told.get(keys[0])), _share(told.get(keys[-1]))]
        cost = f"{costs_[name]:.1f}" if name in costs_ else "not run"
        lines.append(
            f"| `{name}` | {kind.__name__} | {idea} | {formula} | {source} | {cost} | "
            f"{' | '.join(survives)} |"
        )
    return "\n".join([*lines, ""])


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
