"""The page of the study, from its record alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikeguard.study.frontier import gaps, height, lower_bound, place
from spikeguard.study.matrix import means

NOTHING = "not run"
TITLES = {
    "BPTT": "Without adversarial training",
    "AT": "With adversarial training (PGD-2 at 16/255)",
    "regimes": "Other regimes of adversarial training",
    "frontier": "The frontier: AT and TRADES at other training budgets",
}


def page(record: Mapping[str, Any]) -> str:
    """docs/results/embedded.md."""
    told, eps = means(record), 255 * record["eps"]
    settings, seeds = record["settings"], {c["seed"] for c in record["cells"].values()}
    wanted = list(dict.fromkeys((group, row) for group, row, _ in record["wanted"]))
    done = sum(len({c["seed"] for c in record["cells"].values() if (c["group"], c["row"]) == key}) for key in wanted)
    lines = [
        "# Defences on the embedded images",
        "",
        "Written by `spikeguard sweep` from its record (`results/embedded.json`). Embedded Fashion-MNIST, the demo's network (width 16, T = 4,",
        f"decay 0.5), {settings['epochs']} epochs each. Accuracies in %: clean on all validation images; own surrogate (PGD-20) and worst case",
        f"(quick audit) on the first {settings['ranked_on']} validation images at Linf {eps:.0f}/255. Masked: own surrogate less worst case. Cost:",
        "training time over `none` of the same group. An error flag of the audit is named:",
        "such a number says little. Means over the seeds that were run.",
        "",
        f"{done} of {len(record['wanted'])} networks were run; seeds: {', '.join(map(str, sorted(seeds)))}.",
        "",
    ]
    for group, title in TITLES.items():
        rows = [row for g, row in wanted if g == group]
        base = told.get((group, "none"), told.get(("AT", "none")))
        lines += [f"## {title}", "", "| defence | seeds | clean | own surrogate | worst case | masked | over the frontier | cost | flags |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for row in sorted(rows, key=lambda r: -told.get((group, r), {"robust": -1.0})["robust"]):
            lines.append(_row(record, group, row, told, base))
        lines.append("")
    lines += _test(record) + _verdict(record, told)
    return "\n".join(lines)


def _row(record: Mapping[str, Any], group: str, row: str, told: Mapping[Any, Any], base: Mapping[str, float] | None) -> str:
    values = told.get((group, row))
    if values is None:
        return f"| {row} | 0 | {NOTHING} |" + " |" * 6
    over = gaps(record["cells"], group, row) if group != "frontier" else []
    errors = {f for c in record["cells"].values() if (c["group"], c["row"]) == (group, row) for f, level in c["flags"] if level == "error"}
    masked = values["own"] - values["robust"]
    cells = [f"{100 * values[k]:.1f}" for k in ("clean", "own", "robust")] + [f"{100 * masked:.1f}"]
    gap = f"{100 * sum(over) / len(over):+.1f}" if over else ""
    cost = f"{values['seconds'] / base['seconds']:.1f}" if base else ""
    return f"| {row} | {int(values['seeds'])} | {' | '.join(cells)} | {gap} | {cost} | {', '.join(sorted(errors))} |"


def _test(record: Mapping[str, Any]) -> list[str]:
    lines = ["## Scored once on test images", ""]
    if not record["test"]:
        return [*lines, NOTHING, ""]
    lines += [
        f"The best five by validation and the frontier, first seed, standard audit, {record['settings']['scored_on']} test images, in %.",
        "",
        "| network | clean | own surrogate | worst case (95 % interval) | optimiser part | gradient part | rest | over the frontier |",
        "|---|---|---|---|---|---|---|---|",
    ]
    points = [place(t) for name, t in record["test"].items() if record["cells"][name]["group"] == "frontier"]
    for name, t in sorted(record["test"].items(), key=lambda item: -item[1]["worst_case"]["accuracy"]):
        cell, m = record["cells"][name], t["masking"]
        low, high = (100 * v for v in t["worst_case"]["interval"])
        parts = " | ".join(f"{100 * m[k]:.1f}" for k in ("optimiser", "gradient", "rest"))
        clean, robust = place(t)
        gap = "" if cell["group"] == "frontier" or not points else f"{100 * (robust - height(points, clean)):+.1f}"
        lines.append(
            f"| {cell['group']}: {cell['row']} | {100 * clean:.1f} | {100 * m['PGD-20']:.1f} | **{100 * robust:.1f}** ({low:.1f} to {high:.1f}) "
            f"| {parts} | {gap} |"
        )
    return [*lines, ""]


def _verdict(record: Mapping[str, Any], told: Mapping[tuple[str, str], Mapping[str, float]]) -> list[str]:
    """Does the best combination lie above the frontier?"""
    lines = ["## Above the frontier?", ""]
    above = {key: gaps(record["cells"], *key) for key in told if key[0] != "frontier"}
    ranking: Sequence[tuple[tuple[str, str], list[float]]] = sorted(
        ((key, g) for key, g in above.items() if g), key=lambda item: -sum(item[1]) / len(item[1])
    )
    if not ranking:
        return [*lines, f"{NOTHING}: the frontier's networks are missing.", ""]
    lines += ["| combination | seeds | mean gap | lower bound (5 %, over seeds) |", "|---|---|---|---|"]
    for (group, row), g in ranking[:8]:
        bound = lower_bound(g)
        lines.append(f"| {group}: {row} | {len(g)} | {100 * sum(g) / len(g):+.1f} | {NOTHING if bound is None else f'{100 * bound:+.1f}'} |")
    (group, row), g = ranking[0]
    bound = lower_bound(g)
    if bound is None or len(g) < 5:
        lines += ["", f"{group}: {row} stands highest; a claim takes five seeds, {len(g)} were run, so none is made."]
    elif bound > 0:
        lines += [
            "",
            f"{group}: {row} lies above the AT/TRADES frontier at its own clean accuracy: {100 * bound:+.1f} points at least, over {len(g)} seeds.",
        ]
    else:
        lines += [
            "",
            f"No combination lies above the AT/TRADES frontier for certain: {group}: {row} has a lower bound of {100 * bound:+.1f} points.",
        ]
    return [*lines, ""]
