"""What the audit finds on four networks, beside attacks of others: results/audit-bars.json and docs/audit.md.
It goes on where it stopped.

python tools/audit_bars.py FOLDER    (without FOLDER: only docs/audit.md, from the record)

The runs ``vanilla`` and ``tgo`` (the demo's), ``at`` and ``at-tgo`` (`spikeguard train at --epochs 10`) lie
in FOLDER.

For each: standard audit of the images, PGD-100 with the training surrogate, SA-PGD-100 with ASSG,
torchattacks' AutoAttack. The page also tells, from the record of `tools/audit_panel.py`, which member alone
breaks a sample.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from audit_panel import earned, lost

import spikeguard as sg
from spikeguard.auditing.suite import RESERVE, STANDARD
from spikeguard.records.files import SCHEMA, read_json, write_json
from spikeguard.records.member_names import OLD_NAMES
from spikeguard.records.schema import Accuracy
from spikeguard.runtime.machine import machine

ROOT = Path(__file__).parents[1]
OUT, PAGE = ROOT / "results" / "audit-bars.json", ROOT / "docs" / "audit.md"
THOUSAND = "audit of 1000 images"
PANEL = ROOT / "results" / "audit-panel.json"
NETWORKS, IMAGES, THREAT = ("at", "tgo", "vanilla", "at-tgo"), 100, sg.Linf(8 / 255)


def left(net: Any, x: torch.Tensor, y: torch.Tensor, found: torch.Tensor) -> float:
    """Accuracy at attacked images, on the untouched model."""
    with torch.no_grad():
        return float((net(found).argmax(1) == y).double().mean())


def autoattack(net: Any, x: torch.Tensor, y: torch.Tensor) -> float:
    """Accuracy that torchattacks' AutoAttack (standard) leaves."""
    import torchattacks

    return left(
        net,
        x,
        y,
        torchattacks.AutoAttack(net, norm="Linf", eps=8 / 255, version="standard", n_classes=10, seed=0)(
            x, y
        ),
    )


def accuracy(found: Accuracy) -> dict[str, Any]:
    """An accuracy in this record's own layout."""
    return {"accuracy": found.value, "interval": [found.low, found.high]}


def measure(folder: Path, name: str, record: dict[str, Any], images: int) -> None:
    net, test = sg.load(folder / name), sg.load_data("embedded").test.balanced(images)
    x, y = test.pixels(), test.y
    row = record["networks"].setdefault(name, {})

    def step(key: str, work: Any) -> None:
        if key not in row:
            begun = time.perf_counter()
            row[key] = work()
            row[f"{key}, seconds"] = round(time.perf_counter() - begun, 1)
            write_json(OUT, record)
            print(
                f"{name}: {key} {row[key] if isinstance(row[key], float) else ''} {row[f'{key}, seconds']} s",
                flush=True,
            )

    def standard(images: Any = test) -> dict[str, Any]:
        got = sg.audit(net, images.pixels(), images.y, THREAT, effort="standard")
        record = got.record
        assert record.masking is not None
        broken = {OLD_NAMES.get(m.id, m.id): m.only_this_family for m in record.members}
        return {
            "verdict": record.verdict,
            "worst_case": accuracy(record.worst_case),
            "clean": accuracy(record.clean),
            "masking": {"PGD-20": record.masking.pgd20, "worst case": record.masking.worst_case}
            | {k: getattr(record.masking, k) for k in ("optimizer", "gradient", "rest")},
            "without_each_family": record.without_family,
            "after": {OLD_NAMES.get(k, k): v for k, v in record.after.items()},
            "cost": {**asdict(record.cost), "all_seconds": record.cost.total_seconds},
            "only this family": broken,
            "flags": [f.id for f in got.flags],
            "suite": asdict(record.suite),
        }

    step("audit", standard)
    step(
        "PGD-100, training surrogate",
        lambda: left(net, x, y, sg.pgd(net, x, y, THREAT, steps=100, restarts=1).x),
    )
    step("SA-PGD-100 ASSG", lambda: left(net, x, y, sg.sapgd(net, x, y, THREAT, steps=100).x))
    step("torchattacks AutoAttack", lambda: autoattack(net, x, y))
    if name == "tgo":
        step(THOUSAND, lambda: standard(sg.load_data("embedded").test.balanced(1000)))


def page(record: dict[str, Any]) -> str:
    """docs/audit.md."""
    header = [
        "network",
        "clean",
        "PGD-20, own surrogate",
        "PGD-100, own surrogate",
        "SA-PGD-100, ASSG",
        "torchattacks AutoAttack",
    ]
    header += ["standard audit (95 % interval)", "audit, s"]
    lines = [
        "# What the audit finds",
        "",
        "Written by `tools/audit_bars.py` from `results/audit-bars.json`: embedded Fashion-MNIST, "
        f"{record['images']} test images, Linf "
        f"{255 * record['eps']:.0f}/255,",
        "accuracies in %. Vanilla and TGO are the demo's networks; AT (PGD-2 at 8/255) and AT + TGO were "
        "trained for ten epochs by the recipes",
        "`at` and `at-tgo`.",
        "",
        f"| {' | '.join(header)} |",
        "|" + "---|" * len(header),
    ]
    for name, n in record["networks"].items():
        a = n.get("audit")
        if a is None or "torchattacks AutoAttack" not in n:
            lines.append(f"| {name} | not run |" + " |" * 6)
            continue
        low, high = (100 * v for v in a["worst_case"]["interval"])
        cells = [a["clean"]["accuracy"], a["masking"]["PGD-20"]]
        cells += [n[k] for k in ("PGD-100, training surrogate", "SA-PGD-100 ASSG", "torchattacks AutoAttack")]
        told = " | ".join(f"{100 * c:.0f}" for c in cells)
        lines.append(
            f"| {name} | {told} | **{100 * a['worst_case']['accuracy']:.0f}** ({low:.0f} to {high:.0f}) | "
            f"{n['audit, seconds']:.0f} |"
        )
    lines += ["", *_below(record["networks"])]
    if (whole := record["networks"]["tgo"].get(THOUSAND)) is not None:
        low, high = (100 * v for v in whole["worst_case"]["interval"])
        seconds = record["networks"]["tgo"][f"{THOUSAND}, seconds"]
        lines += [
            "",
            "`standard` as it is meant to be run, on 1,000 images of TGO: "
            f"{100 * whole['worst_case']['accuracy']:.1f} % ({low:.1f} to {high:.1f})",
        ]
        lines[-1] += f" in {seconds / 60:.1f} minutes on two cores."
        if whole["suite"] != record["networks"]["tgo"]["audit"]["suite"]:
            lines += ["", "That run was made under another version of the suite than the table."]
    return "\n".join(lines + members_page(read_json(PANEL)))


def _below(networks: dict[str, Any]) -> list[str]:
    """How much lower than attacks of others, and what the audit noticed about itself."""
    told = {name: n for name, n in networks.items() if "audit" in n and "torchattacks AutoAttack" in n}
    lower = {
        k: [round(100 * (n[k] - n["audit"]["worst_case"]["accuracy"])) for n in told.values()]
        for k in ("torchattacks AutoAttack", "SA-PGD-100 ASSG")
    }
    flags = "; ".join(f"{name}: {', '.join(n['audit']['flags']) or 'none'}" for name, n in told.items())
    apart = [
        name for name, n in told.items() if n["PGD-100, training surrogate"] > n["audit"]["masking"]["PGD-20"]
    ]
    return [
        f"The audit lies {' / '.join(map(str, lower['torchattacks AutoAttack']))} points below "
        "torchattacks' AutoAttack and "
        f"{' / '.join(map(str, lower['SA-PGD-100 ASSG']))} below SA-PGD-100 with ASSG alone.",
        f"Its flags (no error): {flags}."
        + (
            f" On {' and '.join(apart)} a hundred steps of PGD break fewer images than twenty: the "
            "surrogate's gradient leads astray."
            if apart
            else ""
        ),
    ]


def members_page(panel: dict[str, Any]) -> list[str]:
    """Which member alone breaks a sample, and who left the suite for want of one."""
    alone, met = (
        earned(panel, frozenset(m.key for m in STANDARD)),
        sum(row["images"] for row in panel["networks"].values()),
    )
    gone = [m.key for m in RESERVE]
    lines = ["", "## Which member alone breaks a sample", ""]
    lines += [
        f"Every member of suite-v1's `standard` met {met} images that are right when clean, of "
        f"{len(panel['networks'])} networks and budgets",
        "(`results/audit-panel.json`, by `tools/audit_panel.py`). From the most expensive down, whoever "
        "broke nothing that another remaining one",
        "did not break, too, left `standard` for the reserve, which `full` still runs. What stays breaks "
        "all that the whole suite broke there.",
        f"Chosen without looking at a network, the members that stay miss {lost(panel)} of its samples in "
        "all (argmax excepted: only hard-label",
        "attacks can reach it).",
        "",
    ]
    lines += [
        f"- {name}: {', '.join(f'{p} ({places.count(p)})' for p in dict.fromkeys(places))}"
        for name, places in alone.items()
        if places
    ]
    silent = [m.key for m in STANDARD if not alone.get(m.key)]
    lines += [
        "",
        f"Kept as controls or to measure masking: {', '.join(silent)}.",
        "",
        f"None of their own, in the reserve ({len(gone)}): {', '.join(gone)}.",
        "",
    ]
    return lines


def main() -> None:
    if len(sys.argv) < 2:
        PAGE.write_text(page(read_json(OUT)))
        return
    folder = Path(sys.argv[1])
    record = (
        read_json(OUT)
        if OUT.exists()
        else {"schema": SCHEMA, "kind": "audit bars", "images": IMAGES, "eps": 8 / 255, "networks": {}}
    )
    if record["images"] != IMAGES:
        sys.exit(f"{OUT} was made with {record['images']} images: delete it first")
    record["machine"] = machine()
    for name in NETWORKS:
        measure(folder, name, record, IMAGES)
    PAGE.write_text(page(record))


if __name__ == "__main__":
    main()
