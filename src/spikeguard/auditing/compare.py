"""Several records.

Their union for one model, a paired test between two models, tables, a paragraph on the method. No model is
run.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from math import erfc
from statistics import pstdev
from typing import Any

from spikeguard.auditing.findings import told
from spikeguard.errors import UserError
from spikeguard.records.files import SCHEMA
from spikeguard.runtime.machine import machine
from spikeguard.stats import mcnemar

Record = Mapping[str, Any]
SAME: dict[str, Callable[[Record], Any]] = {
    "images": lambda record: record["digests"]["images"],
    "model": lambda record: record["digests"]["model"],
    "threat": lambda record: record["threat"],
    "random_model": lambda record: record["random_model"],
}
SHAPE: dict[str, Callable[[Record], Any]] = {
    "network": lambda recipe: (recipe["network"], recipe["options"]),
    "number of time steps": lambda recipe: recipe["timesteps"],
    "decay of the neurons": lambda recipe: recipe["neuron"]["decay"],
}
"""What rows of one table have to share beside the judge.

Two networks that differ here differ in more than their defenses.
"""


def _audits(records: Sequence[Record], at_least: int = 1) -> None:
    if len(records) < at_least:
        raise UserError(f"needs at least {at_least} records, got {len(records)}")
    for record in records:
        if record.get("kind") != "audit":
            raise UserError(f"a record of kind {record.get('kind')!r} is no audit")


def merge(records: Sequence[Record]) -> dict[str, Any]:
    """The union of audits of the same model, images and threat.

    A sample counts as broken if any of them broke it. UserError if they differ.
    """
    _audits(records, 2)
    first = records[0]
    for other in records[1:]:
        for name, get in SAME.items():
            if get(other) != get(first):
                raise UserError(
                    f"records differ in {name} ({get(first)} and {get(other)}): only audits of the same "
                    "model and images have a union"
                )
    n = first["images"]
    right = [min(values) for values in zip(*(r["right"] for r in records), strict=True)]
    names = [
        m for number, r in enumerate(records) for m in ({**row, "record": number} for row in r["members"])
    ]
    best = [min(range(len(records)), key=lambda k: records[k]["right"][i]) for i in range(n)]
    worst = told(sum(right) / n, n)
    hashes = [r["suite"]["hash"] for r in records]
    suites = " and ".join(dict.fromkeys(f"{r['suite']['version']}, {r['suite']['effort']}" for r in records))
    low, high = (100 * v for v in worst["interval"])
    raised = [f for r in records for f in r["flags"]]
    errors = [f["id"] for f in raised if f["level"] == "error"]
    said = (
        f"at most {100 * worst['accuracy']:.1f} % ({low:.1f} to {high:.1f}) under the union of "
        f"{len(records)} audits ({suites})."
    )
    return {
        "schema": SCHEMA,
        "kind": "audit",
        **{
            k: first[k]
            for k in ("threat", "images", "digests", "random_model", "scored_by", "index", "clean")
            if k in first
        },
        "suite": {
            "version": " and ".join(dict.fromkeys(hashes)),
            "effort": "union",
            "hash": f"union of {' and '.join(sorted(hashes))}",
        },
        "target": first.get("target"),
        "worst_case": worst,
        "verdict": f"Not reliable ({', '.join(errors)}): {said}" if errors else said,
        "flags": raised,
        "members": names,
        "right": right,
        "witness_in": [b if right[i] < 1 else None for i, b in enumerate(best)],
        "merged_from": [
            {
                "target": r.get("target"),
                "suite": r["suite"],
                "seed": r.get("seed"),
                "worst_case": r["worst_case"],
            }
            for r in records
        ],
        "machine": machine(),
    }


def compare(a: Record, b: Record) -> dict[str, Any]:
    """A paired test of two models on the same images under the same threat and suite: exact McNemar, or by
    the normal law of the mean difference
    where a model is random and its images count by shares. UserError if images, threat or suite differ."""
    _audits([a, b], 2)
    for name, one, two in (
        ("images", a["digests"]["images"], b["digests"]["images"]),
        ("threat", a["threat"], b["threat"]),
        ("suite", a["suite"]["hash"], b["suite"]["hash"]),
    ):
        if one != two:
            raise UserError(
                f"records differ in {name} ({one} and {two}): rows are compared only under the same one"
            )
    only_a = sum(p > 0.5 >= q for p, q in zip(a["right"], b["right"], strict=True))
    only_b = sum(q > 0.5 >= p for p, q in zip(a["right"], b["right"], strict=True))
    difference = 100 * (a["worst_case"]["accuracy"] - b["worst_case"]["accuracy"])
    apart = [p - q for p, q in zip(a["right"], b["right"], strict=True)]
    deviation = 100 * pstdev(apart) / len(apart) ** 0.5
    spread = 1.959964 * deviation
    random = a["random_model"] or b["random_model"]
    p = (
        mcnemar(only_a, only_b)
        if not random
        else erfc(abs(difference) / deviation / 2**0.5)
        if deviation
        else float(not difference)
    )
    sure = "significant" if p < 0.05 else "not significant"
    said = (
        f"{difference:+.1f} points ({difference - spread:+.1f} to {difference + spread:+.1f}), {sure} (p "
        f"= {p:.3g}, {only_a} images against {only_b})"
    )
    unreliable = [
        name for name, r in (("first", a), ("second", b)) if any(f["level"] == "error" for f in r["flags"])
    ]
    if unreliable:
        said += f"; the {' and the '.join(unreliable)} record is flagged unreliable"
    return {
        "difference": difference,
        "interval": [difference - spread, difference + spread],
        "only_first": only_a,
        "only_second": only_b,
        "p": p,
        "says": said,
    }


def rows(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table.

    UserError if the records differ in images, threat or suite, or, where they name recipes, in the network's
    shape.
    """
    _audits(records)
    for name, seen in (
        ("threat", [r["threat"] for r in records]),
        ("suite", [r["suite"]["hash"] for r in records]),
        ("images", [r["digests"]["images"] for r in records]),
        *((what, [get(r["recipe"]) for r in records if "recipe" in r]) for what, get in SHAPE.items()),
    ):
        if any(s != seen[0] for s in seen):
            raise UserError(f"records differ in {name}: a table holds rows of one {name} only")
    header = ["network", "clean", "PGD-20, own gradient", "worst case", "95 % interval", "reliable"]
    table = []
    for number, r in enumerate(records):
        own = r.get("alone", {}).get("PGD-20")
        low, high = r["worst_case"]["interval"]
        table.append(
            [
                str(r.get("target") or f"network {number + 1}"),
                f"{100 * r['clean']['accuracy']:.1f}",
                "not run" if own is None else f"{100 * own['accuracy']:.1f}",
                f"{100 * r['worst_case']['accuracy']:.1f}",
                f"{100 * low:.1f} to {100 * high:.1f}",
                "no" if any(f["level"] == "error" for f in r["flags"]) else "yes",
            ]
        )
    return header, table


def as_csv(records: Sequence[Record]) -> str:
    """The table as CSV."""
    header, table = rows(records)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(table)
    return out.getvalue()


def as_latex(records: Sequence[Record]) -> str:
    """The table as a LaTeX tabular (booktabs)."""
    header, table = rows(records)
    special = str.maketrans(
        {c: "\\" + c for c in "&%$#_{}"}
        | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    )
    lines = [" & ".join(c.translate(special) for c in row) + r" \\" for row in (header, *table)]
    body = [
        r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}",
        r"\toprule",
        lines[0],
        r"\midrule",
        *lines[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(body) + "\n"


def methods(record: Record) -> str:
    """A paragraph for a paper's section on evaluation, from the record alone."""
    _audits([record])
    ((norm, eps),) = record["threat"].items()
    budget = (
        f"{255 * eps:.3g}/255"
        if norm == "linf" and not isinstance(eps, list)
        else "per image"
        if isinstance(eps, list)
        else f"{eps:g}"
    )
    names = {"linf": "L-infinity", "l2": "L2", "l1": "L1"}
    ran = [m for m in record["members"] if m["met"]]
    families = list(dict.fromkeys(m["family"] for m in ran))
    versions = record["machine"]["versions"]
    cost = record.get("cost", {})
    low, high = (100 * v for v in record["worst_case"]["interval"])
    random = (
        "The model is random at inference: gradients were averaged over draws of its noise, inputs were "
        "chosen on one set of draws and scored on "
        "100 others, and accuracies are mean shares of right draws."
    )
    still = (
        "A sample counts as broken only with a stored input that lies inside the budget and was checked "
        "again in float32 on the untouched model, "
        "at another batch size."
    )
    errors = [f["id"] for f in record["flags"] if f["level"] == "error"]
    sentences = [
        f"Robustness was measured with spikeguard {versions['spikeguard']} ({record['suite']['version']}, "
        f"effort {record['suite']['effort']}, suite "
        f"hash {record['suite']['hash']}, seed {record.get('seed', 'several')}) on {record['images']} "
        f"images under an {names[norm]} budget of "
        f"{budget}, pixels in [0, 1].",
        f"{len(ran)} attacks of {len(families)} families ({', '.join(families)}) were run one after the "
        "other on the samples that still stood; the "
        "number reported is their union, an upper bound of robust accuracy.",
        random if record["random_model"] else still,
        f"The audit flagged its own result as not reliable ({', '.join(errors)})."
        if errors
        else "No check of the audit's own reliability failed.",
        f"Clean accuracy is {100 * record['clean']['accuracy']:.1f} %, robust accuracy at most "
        f"{100 * record['worst_case']['accuracy']:.1f} % "
        f"(95 % interval over the choice of images {low:.1f} to {high:.1f} %).",
    ]
    if cost:
        sentences.append(
            f"The attacks took {cost['forwards']:,.0f} forward and {cost['backwards']:,.0f} backward passes "
            "of single images."
        )
    return " ".join(sentences)
