"""The page of the study, from its record alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikeguard.study.frontier import gap, lower_bound, mean_of
from spikeguard.study.matrix import ADVERSARY, Key, on_frontier

NOTHING = "not run"
BUDGET = f"PGD-{ADVERSARY['steps']} at {255 * ADVERSARY['eps']:.0f}/255"
TITLES = {
    "BPTT": "Without adversarial training",
    "AT": f"With adversarial training ({BUDGET})",
    "regimes": f"Other regimes ({BUDGET})",
    "frontier": "The frontier: AT and TRADES at other training budgets",
}
Row = Mapping[str, Any]


def page(record: Mapping[str, Any]) -> str:
    """docs/results/embedded.md."""
    cells: Mapping[str, Row] = record["cells"]
    wanted = list(dict.fromkeys((group, row) for group, row, _ in record["wanted"]))
    settings, seeds = record["settings"], sorted({c["seed"] for c in cells.values()})
    eps, low = (255 * record[k] for k in ("eps", "low"))
    lines = [
        "# Defences on the embedded images",
        "",
        "Written by `spikeguard sweep` from its record. Embedded Fashion-MNIST, the recipe `vanilla` (the demo's network and neurons) but for",
        f"{settings['epochs']} epochs and the defence. Accuracies in %: clean on all validation images; own surrogate (PGD-20) and worst case",
        "(quick audit, and for every network what is adaptive to any defence here) on",
        f"{settings['ranked_on']} validation images at Linf {eps:.0f}/255. Masked: own surrogate less worst case. Gap: worst case over the frontier",
        "of AT and TRADES of the same seed at the network's own clean accuracy. Cost: training time over `none` of the group (several rivals take",
        "more passes than AT; none was given more epochs). An error flag of the audit is named: such a number says little. Means over the seeds",
        "that were run. TGO has the demo's constants, chosen on validation",
        "images of this data; rivals have their published ones, found on other data.",
        "",
        f"{sum(1 for _ in cells)} of {len(record['wanted'])} networks were run; seeds: {', '.join(map(str, seeds)) or 'none'}.",
        "",
        "![clean and worst-case accuracy of every defence, over the frontier of AT and TRADES](embedded.svg)",
        "",
    ]
    for group, title in TITLES.items():
        header = ["defence", "seeds", "clean", "own surrogate", "worst case", "masked", "gap", "cost", "flags"]
        header += [f"worst case at {low:.0f}/255"] if group == "BPTT" else []
        lines += [f"## {title}", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        keys = [key for key in wanted if key[0] == group]
        base = _sound(_of(cells, (group, "none"))) or _sound(_of(cells, ("AT", "none")))
        for key in sorted(keys, key=lambda k: -_robust(_of(cells, k))):
            lines.append(_line(key, _of(cells, key), cells, base, len(header)))
        lines.append("")
    return "\n".join(lines + _test(record) + _verdict(record))


def _of(cells: Mapping[str, Row], key: Key) -> list[Row]:
    return [c for c in cells.values() if (c["group"], c["row"]) == key]


def _sound(row: Sequence[Row]) -> list[Row]:
    return [c for c in row if "failed" not in c]


def _robust(row: Sequence[Row]) -> float:
    sound = _sound(row)
    return mean_of(sound, "worst_case") if sound else -1.0


def _line(key: Key, row: list[Row], cells: Mapping[str, Row], base: list[Row], columns: int) -> str:
    sound = _sound(row)
    if not sound:
        return f"| {key[1]} | 0 | {'failed: ' + row[0]['failed'] if row else NOTHING} |" + " |" * (columns - 3)

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    clean, worst = mean([c["validation_accuracy"] for c in sound]), mean_of(sound, "worst_case")
    own, seconds = mean([c["masking"]["PGD-20"] for c in sound]), mean([c["seconds"] for c in sound])
    gaps = [] if on_frontier(sound[0]) else [g for c in sound if (g := gap(c, cells)) is not None]
    errors = sorted({f for c in sound for f, level in c["flags"] if level == "error"})
    told = [key[1], str(len(sound)), *(f"{100 * v:.1f}" for v in (clean, own, worst, own - worst))]
    told += [f"{100 * mean(gaps):+.1f}" if gaps else "", f"{seconds / mean([c['seconds'] for c in base]):.1f}" if base else "", ", ".join(errors)]
    if key[0] == "BPTT":
        told.append(f"{100 * mean([c['low']['worst_case']['accuracy'] for c in sound]):.1f}")
    return f"| {' | '.join(told)} |"


def _test(record: Mapping[str, Any]) -> list[str]:
    lines = ["## Scored once on test images", ""]
    if not record["test"]:
        return [*lines, f"{NOTHING}: this comes last, when every network is ranked.", ""]
    again = {name for name, told in record["test"].items() if "seconds" in told and told["seconds"] != record["cells"][name]["seconds"]}
    lines += [
        "The best five by validation, the frontier, and no defence; first seed; standard audit, with quick's members and all adaptive ones, "
        f"{record['settings']['scored_on']} test images, in %.",
        *(["Trained anew: the ranked network was lost, and the same recipe on another machine gives another one."] if again else []),
        "",
        "| network | clean | own surrogate | worst case (95 % interval) | optimiser part | gradient part | rest | gap |",
        "|---|---|---|---|---|---|---|---|",
    ]
    scored = {name: {**record["cells"][name], **told} for name, told in record["test"].items()}
    for name in record["finalists"]:
        cell = scored.get(name, record["cells"][name])
        label = f"{cell['group']}: {cell['row']}{' (trained anew)' if name in again else ''}"
        if name not in scored or "failed" in cell:
            lines.append(f"| {label} | {'failed: ' + cell['failed'] if 'failed' in cell else NOTHING} |" + " |" * 6)
            continue
        m = cell["masking"]
        low, high = (100 * v for v in cell["worst_case"]["interval"])
        over = None if on_frontier(cell) else gap(cell, scored)
        figures = [f"{100 * cell['clean']['accuracy']:.1f}", f"{100 * m['PGD-20']:.1f}"]
        figures.append(f"**{100 * cell['worst_case']['accuracy']:.1f}** ({low:.1f} to {high:.1f})")
        figures += [f"{100 * m[k]:.1f}" for k in ("optimiser", "gradient", "rest")]
        lines.append(f"| {label} | {' | '.join(figures)} | {'' if over is None else f'{100 * over:+.1f}'} |")
    return [*lines, ""]


def _verdict(record: Mapping[str, Any]) -> list[str]:
    """Does the best combination lie above the frontier? Only seeds that did not choose it are asked."""
    lines = ["## Above the frontier?", ""]
    if not record.get("best"):
        return [*lines, f"{NOTHING}: the best row is chosen when every network is ranked, and asked again on five fresh seeds.", ""]
    key = (record["best"][0], record["best"][1])
    name, row = ": ".join(key), _sound(_of(record["confirmed"], key))
    gaps = [g for c in row if (g := gap(c, record["confirmed"])) is not None]
    lines += [
        f"Highest mean gap on the ranking's seeds: {name}. It and the frontier were trained and ranked again on seeds that did not choose it.",
        "",
    ]
    if len(gaps) < 5:
        return [*lines, f"{len(gaps)} of those five seeds were run: no claim is made.", ""]
    bound = lower_bound(row, record["confirmed"])
    assert bound is not None
    figures = f"mean gap {100 * sum(gaps) / len(gaps):+.1f} points, lower bound {100 * bound:+.1f} (5 %, bootstrap over seeds and images)"
    if bound > 0:
        return [*lines, f"{name} lies above the AT/TRADES frontier at its own clean accuracy over {len(gaps)} seeds: {figures}.", ""]
    return [*lines, f"{name} does not lie above the AT/TRADES frontier for certain, so no combination here is shown to: {figures}.", ""]
