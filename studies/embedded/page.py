"""The page of the study, from its record alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from spikeguard.auditing.suite import Effort
from studies.embedded import matrix
from studies.embedded.frontier import (
    best,
    grouped,
    lower_bound,
    margin_over_frontier,
    margins_over_frontier,
    mean_of,
    most_robust,
    whole,
)
from studies.embedded.matrix import ADVERSARY, Key, StudySettings, on_frontier
from studies.embedded.ranking import fingerprint_of as made_by

NOTHING = "not run"
LONG = 60  # seconds that a training should take at most
BUDGET = f"PGD-{ADVERSARY['steps']} at {255 * ADVERSARY['eps']:.0f}/255"
TITLES = {
    "BPTT": "Without adversarial training (MPPD, TV-l1 and the shift guard make a disturbance of their own "
    "all the same)",
    "AT": f"With adversarial training ({BUDGET})",
    "regimes": f"Other regimes ({BUDGET})",
    "frontier": "The frontier: AT and TRADES at other training budgets",
}
Row = Mapping[str, Any]


def page(record: Mapping[str, Any]) -> str:
    """docs/results/embedded.md."""
    cells = whole(record["cells"])
    wanted = list(dict.fromkeys((group, row) for group, row, _ in record["wanted"]))
    settings = record["settings"]
    eps, low = (255 * record[k] for k in ("eps", "low"))
    lines = [
        "# Defenses on the embedded images",
        "",
        "Written by `spikeguard sweep` from its record. Embedded Fashion-MNIST, the recipe `vanilla` (the "
        "demo's network and neurons) but for",
        f"{settings['epochs']} epochs and the defense. Accuracies in %: clean on all validation images; own "
        "surrogate (PGD-20) and worst case",
        "(quick audit, and for every network what is adaptive to any defense here) on",
        f"{settings['ranked_on']} validation images at Linf {eps:.0f}/255. Masked: own surrogate less worst "
        "case. Gap: worst case over the frontier",
        "of AT and TRADES of the same seed (the upper hull of its points; right of them its last one "
        "counts) at the network's own clean accuracy,",
        "both on the attacked images. Cost: training time over `none` of the group and seed, else over "
        "AT's, where both are known to come from the",
        "same kind of machine with as many threads (several rivals take more passes than AT; none was given "
        "more epochs), beside other work:",
        "[defenses.md](../defenses.md) has costs measured side by side. An error flag of the audit is "
        "named: such a number says little. Of random",
        "networks the quick audit averages 4 gradients a step only. Rows that differ by less than ten "
        "points on so few images and seeds are not told",
        "apart.",
        "",
        "What favors whom: TGO has the demo's constants, found on this data by a search that left no "
        "record; AT and TRADES are given six budgets;",
        "no rival was tuned. Rivals have their published constants where a paper names them, but stand on "
        "the demo's neurons and schedule, which are",
        "not theirs (DLIF 0.5 for a decay of 0.99, HoSNN 0.5 for 0.8, RandHet a threshold of 1 for 0.5, "
        "FEEL's leak from 0.5 for 1, RAT a weight",
        "decay of 5e-4 for 0, MPPD the plain loss for half clean, half disturbed), and the weights of "
        "MPD-SGR and SR, both input randomizations and",
        "the share of conversion are ours. Without AT, MPPD's disturbance has its published 4/255 and our "
        "guards have 16/255. EMA estimates batch",
        "norm anew on clean images, with AT too.",
        "",
        *_ran(record, cells, len(wanted)),
        "",
        "![clean and worst-case accuracy of every defense, over the frontier of AT and TRADES](embedded.svg)",
        "",
    ]
    for group, title in TITLES.items():
        header = [
            "defense",
            "seeds",
            "clean",
            "own surrogate",
            "worst case",
            "masked",
            "gap",
            "cost",
            "flags",
        ]
        header += [f"worst case at {low:.0f}/255"] if group == "BPTT" else []
        lines += [f"## {title}", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        keys = [key for key in wanted if key[0] == group]
        base = _sound(_of(cells, (group, "none"))) or _sound(_of(cells, ("AT", "none")))
        for key in sorted(keys, key=lambda k: -_robust(_of(cells, k))):
            lines.append(_line(key, _of(cells, key), cells, base, len(header)))
        lines.append("")
    return "\n".join(lines + _test(record) + _verdict(record))


def _ran(record: Mapping[str, Any], cells: Mapping[str, Row], rows: int) -> list[str]:
    """How much of the study was run, and what it took."""
    made = [c for part in ("cells", "confirmed") for c in record[part].values() if "failed" not in c]
    seeds = sorted({c["seed"] for c in cells.values()})
    begun = len(record["cells"]) - len(cells)
    asked = max(
        StudySettings().seeds,
        *(1 + seed for _, _, seed in record["wanted"]),
        *(1 + c["seed"] for c in record["cells"].values()),
    )
    text = (
        f"{len(record['cells'])} of {rows * asked} networks ({rows} ways to train, {asked} seeds) were "
        "run; the means are over "
    )
    text += f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds)) or NOTHING}"
    text += f" ({begun} networks of a seed that is not whole yet are left out)." if begun else "."
    now = {c.name: made_by(c) for c in matrix.cells(StudySettings(asked))}
    old = sorted(
        {
            f"{c['group']}: {c['row']}"
            for name, c in cells.items()
            if "made" in c and c["made"] != now.get(name)
        }
    )
    if old:
        text += f" Of earlier code, to be run again by the next sweep: {', '.join(old)}."
    if not made:
        return [text]
    long, longest = sum(c["seconds"] > LONG for c in made), max(c["seconds"] for c in made)
    spent = sum(c["seconds"] + c["audit_seconds"] + c.get("low", {}).get("audit_seconds", 0.0) for c in made)
    for part in ("test", "looked_at"):
        spent += sum(c.get("audit_seconds", 0.0) for c in record.get(part, {}).values())
        spent += sum(record[part][name]["seconds"] for name in _again(record, part))
    return [
        text,
        f"{long} of {len(made)} trainings took more than {LONG} s, the longest {longest:.0f} s; trainings "
        "and attacks of ranking, fresh seeds and",
        f"test images took {spent / 60:.0f} minutes in all, each in its own time also where several ran "
        "side by side, without checks and controls.",
        f"Ranked and confirmed on: {_machines(made)}.",
    ]


def _machines(made: Sequence[Row]) -> str:
    def where(cell: Row) -> str:
        at = cell.get("machine")
        if at is None:
            return "a machine that was not noted"
        return (
            at.get("device")
            or f"{', '.join(at['instructions'])} ({at['threads']} thread{'s' if at['threads'] > 1 else ''})"
        )

    return "; ".join(f"{count} on {place}" for place, count in Counter(map(where, made)).most_common())


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
        return f"| {key[1]} | 0 | {'failed: ' + row[0]['failed'] if row else NOTHING} |" + " |" * (
            columns - 3
        )

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    clean, worst = mean([c["validation_accuracy"] for c in sound]), mean_of(sound, "worst_case")
    own, costs = mean([c["masking"]["PGD-20"] for c in sound]), _costs(sound, base)
    over = [] if on_frontier(sound[0]) else margins_over_frontier(sound, cells)
    errors = sorted({f for c in sound for f, level in c["flags"] if level == "error"})
    told = [key[1], str(len(sound)), *(f"{100 * v:.1f}" for v in (clean, own, worst, own - worst))]
    told += [
        f"{100 * mean(over):+.1f}" if over else "",
        f"{mean(costs):.1f}" if costs else "",
        ", ".join(errors),
    ]
    if key[0] == "BPTT":
        told.append(f"{100 * mean([c['low']['worst_case']['accuracy'] for c in sound]):.1f}")
    return f"| {' | '.join(told)} |"


def _costs(row: Sequence[Row], base: Sequence[Row]) -> list[float]:
    """Training time over that of the base of the same seed.

    Where both are known to have been trained on the same kind of machine.
    """
    known = [(c, b) for c in row for b in base if c["seed"] == b["seed"] and "machine" in c]
    return [c["seconds"] / b["seconds"] for c, b in known if c["machine"] == b.get("machine")]


def _test(record: Mapping[str, Any]) -> list[str]:
    lines = ["## Scored once on test images", ""]
    if not record["test"]:
        return [*lines, f"{NOTHING}: this comes last, when every network is ranked.", ""]
    remarks = _remarks(record, "test", "standard")
    lines += [
        f"The best five by validation ({_chosen(record)}), the frontier, no defense, and whatever was "
        "scored when the study had fewer rows or seeds; "
        "first seed; standard audit, with quick's members and all adaptive ones, "
        f"{record['settings']['scored_on']} test images, in %.",
        *(
            [
                "Trained anew: the ranked network was lost, and the same recipe on another machine gives "
                "another one."
            ]
            if _again(record, "test")
            else []
        ),
        "",
        "| network | clean | own surrogate | worst case (95 % interval) | optimizer part | gradient part | "
        "rest | gap |",
        "|---|---|---|---|---|---|---|---|",
    ]
    scored = {
        name: {**record["cells"][name], **told}
        for name, told in record["test"].items()
        if name in record["cells"]
    }
    for name in dict.fromkeys((*record["finalists"], *scored)):
        cell = scored.get(name, record["cells"][name])
        label = f"{cell['group']}: {cell['row']}{remarks.get(name, '')}"
        if name not in scored or "failed" in cell:
            lines.append(
                f"| {label} | {'failed: ' + cell['failed'] if 'failed' in cell else NOTHING} |" + " |" * 6
            )
            continue
        m = cell["masking"]
        low, high = (100 * v for v in cell["worst_case"]["interval"])
        over = None if on_frontier(cell) else margin_over_frontier(cell, scored)
        figures = [f"{100 * cell['clean']['accuracy']:.1f}", f"{100 * m['PGD-20']:.1f}"]
        figures.append(f"**{100 * cell['worst_case']['accuracy']:.1f}** ({low:.1f} to {high:.1f})")
        figures += [f"{100 * m[k]:.1f}" for k in ("optimizer", "gradient", "rest")]
        lines.append(f"| {label} | {' | '.join(figures)} | {'' if over is None else f'{100 * over:+.1f}'} |")
    return [*lines, ""]


def _again(record: Mapping[str, Any], part: str) -> set[str]:
    """Networks of a part of the record whose ranked network was lost, and trained anew."""
    cells = record["cells"]
    return {
        name
        for name, told in record.get(part, {}).items()
        if name in cells and told.get("seconds") not in (None, cells[name].get("seconds"))
    }


def _remarks(record: Mapping[str, Any], part: str, effort: Effort) -> dict[str, str]:
    """What is said behind the name of a network there.

    That it is not the one that was ranked, that its number is not made as today's would be.
    """
    now, again = {c.name: made_by(c, effort) for c in matrix.cells(StudySettings(1))}, _again(record, part)
    old = {
        name for name, told in record.get(part, {}).items() if name in now and told.get("made") != now[name]
    }
    return {
        name: " (trained anew)" * (name in again) + " (by earlier code)" * (name in old)
        for name in again | old
    }


def _chosen(record: Mapping[str, Any]) -> str:
    seeds = record.get("chosen_on", [0])  # records from before this was noted had ranked one
    return f"ranked on {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def _verdict(record: Mapping[str, Any]) -> list[str]:
    """Does the best combination lie above the frontier? Only seeds that did not choose it are asked."""
    lines = ["## Above the frontier?", ""]
    if not record.get("best"):
        return [
            *lines,
            f"{NOTHING}: the best row is chosen when every network is ranked, and asked again on five fresh "
            "seeds.",
            "",
        ]
    chosen: dict[Key, list[str]] = {}
    for what, kept in (("mean gap", "best"), ("mean worst case", "most_robust")):
        if record.get(kept):
            chosen.setdefault((record[kept][0], record[kept][1]), []).append(what)
    asked = dict.fromkeys((c["group"], c["row"]) for c in record["confirmed"].values() if not on_frontier(c))
    later = "." if asked.keys() <= chosen.keys() else ", and rows or seeds were added after it was begun."
    lines += [
        "What had the highest mean gap, and what the highest mean worst case, when they were chosen "
        f"({_chosen(record)}), was trained and ranked",
        "again, with the frontier, on seeds that did not choose it. The images are those that ranked: the "
        "bounds cover the luck of few images, not",
        f"that rows were chosen on these. Only the table above has others, for one seed{later}",
        "",
    ]
    for key, why in chosen.items():
        lines += [f"- Highest {' and '.join(why)}: {': '.join(key)}. {_asked(record, key)}"]
    for key in asked:
        if key not in chosen:
            lines += [
                f"- Chosen before, when the study had fewer rows or seeds: {': '.join(key)}. "
                f"{_asked(record, key)}"
            ]
    if len(asked) > 1:
        lines += [f"- That is {len(asked)} questions to the same five seeds, each at its own 5 %."]
    for what, now in (("mean gap", best(record["cells"])), ("mean worst case", most_robust(record["cells"]))):
        if now and tuple(now) not in {*asked, *chosen}:
            lines += [
                f"- By all that was run since, {': '.join(now)} has the highest {what}; it was not asked."
            ]
    remarks = _remarks(record, "looked_at", "full")
    lines += [
        f"- {_looked_at(record, name, remarks.get(name, ''))}"
        for name in record.get("looked_at", {})
        if name in record["cells"]
    ]
    return [*lines, ""]


def _looked_at(record: Mapping[str, Any], name: str, remark: str) -> str:
    """What the longest look left of what the short one had left, on the same images."""
    cell, told = record["cells"][name], record["looked_at"][name]
    if "failed" in told:
        return f"{cell['group']}: {cell['row']} under `full`: failed: {told['failed']}."
    low, high = (100 * v for v in told["worst_case"]["interval"])
    long, short = (100 * c["worst_case"]["accuracy"] for c in (told, cell))
    errors = [flag for flag, level in told["flags"] if level == "error"]
    flagged = f"flags: {', '.join(errors)}" if errors else "no flag of level error"
    return (
        f"The first network of {cell['group']}: {cell['row']}{remark} under `full` "
        f"({told['members']} members) on the images that ranked it: {long:.1f} % ({low:.1f} to {high:.1f}) "
        "are left where the ranking left "
        f"{short:.1f} %; {flagged}."
    )


def _asked(record: Mapping[str, Any], key: Key) -> str:
    """What the fresh seeds say of a row."""
    row = _sound(_of(record["confirmed"], key))
    over = margins_over_frontier(row, record["confirmed"])
    frontier = {
        (group, name) for group, name, _ in record["wanted"] if on_frontier({"group": group, "row": name})
    }
    if len(over) < 5 or not frontier <= grouped(record["confirmed"].values()).keys():
        return f"{len(over)} of those five seeds were run: no claim is made."
    bound = lower_bound(row, record["confirmed"])
    assert bound is not None
    figures = (
        f"mean gap {100 * sum(over) / len(over):+.1f} points, lower bound {100 * bound:+.1f} (5 %, "
        "bootstrap over seeds and images)"
    )
    figures += f"; worst case {100 * mean_of(row, 'worst_case'):.1f} % on average"
    where = "above the AT/TRADES frontier at its own clean accuracy"
    return f"It lies {where}: {figures}." if bound > 0 else f"It does not lie {where} for certain: {figures}."
