"""What the audit finds on four networks, beside attacks of others: results/audit-bars.json and docs/audit.md. It goes on where it stopped.

python tools/audit_bars.py FOLDER    (without FOLDER: only docs/audit.md, from the record)

The runs ``vanilla`` and ``tgo`` (the demo's), ``at`` and ``at-tgo`` (`spikeguard train at --epochs 10`) lie in FOLDER.

For each: standard audit of the images, PGD-100 with the training surrogate, SA-PGD-100 with ASSG, torchattacks' AutoAttack; and which member alone
broke a sample when every member met every image of a panel.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

import spikeguard as sg
from spikeguard.auditing import runner
from spikeguard.auditing.suite import SUITES, Member, members
from spikeguard.auditing.witness import keep
from spikeguard.records import SCHEMA, machine, read_json, write_json

ROOT = Path(__file__).parents[1]
OUT, PAGE = ROOT / "results" / "audit-bars.json", ROOT / "docs" / "audit.md"
NETWORKS, IMAGES, PANEL, THREAT = ("at", "tgo", "vanilla", "at-tgo"), 100, 30, sg.Linf(8 / 255)


def left(net: Any, x: torch.Tensor, y: torch.Tensor, found: torch.Tensor) -> float:
    """Accuracy at attacked images, on the untouched model."""
    with torch.no_grad():
        return float((net(found).argmax(1) == y).double().mean())


def autoattack(net: Any, x: torch.Tensor, y: torch.Tensor) -> float:
    """Accuracy that torchattacks' AutoAttack (standard) leaves."""
    import torchattacks

    return left(net, x, y, torchattacks.AutoAttack(net, norm="Linf", eps=8 / 255, version="standard", n_classes=10, seed=0)(x, y))


def alone(net: Any, x: torch.Tensor, y: torch.Tensor, rows: list[Member]) -> dict[str, Any]:
    """Every member on every image: how many each breaks, and how many nobody else does."""
    broke = {}
    for number, member in enumerate(rows):
        print(f"  {number + 1}/{len(rows)} {member.name}", flush=True)
        got = member.run(net, x, y, THREAT, 0, torch.arange(len(x)))
        broke[member.name] = keep(net, x, y, got.x, got.broken, THREAT)[1]
    total = torch.stack(list(broke.values())).sum(0)
    return {name: {"breaks": int(b.sum()), "alone": int((b & (total == 1)).sum())} for name, b in broke.items()}


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
            print(f"{name}: {key} {row[key] if isinstance(row[key], float) else ''} {row[f'{key}, seconds']} s", flush=True)

    def standard() -> dict[str, Any]:
        got = sg.audit(net, x, y, THREAT, effort="standard")
        broken = {m["name"]: m["only this family"] for m in got.attacks}
        return {
            **{k: got.record[k] for k in ("verdict", "worst_case", "clean", "masking", "without_each_family", "after", "cost")},
            "only this family": broken,
            "flags": [f.id for f in got.flags],
        }

    step("audit", standard)
    step("PGD-100, training surrogate", lambda: left(net, x, y, sg.pgd(net, x, y, THREAT, steps=100, restarts=1).x))
    step("SA-PGD-100 ASSG", lambda: left(net, x, y, sg.sapgd(net, x, y, THREAT, steps=100).x))
    step("torchattacks AutoAttack", lambda: autoattack(net, x, y))
    rows = [m for m in members("standard", THREAT, runner.traits(net, False))[0] if m in SUITES["standard"]]
    step("members", lambda: alone(net, x[:PANEL], y[:PANEL], rows))


def page(record: dict[str, Any]) -> str:
    """docs/audit.md."""
    header = ["network", "clean", "PGD-20, own surrogate", "PGD-100, own surrogate", "SA-PGD-100, ASSG", "torchattacks AutoAttack"]
    header += ["standard audit (95 % interval)", "audit, s"]
    lines = [
        "# What the audit finds",
        "",
        f"Written by `tools/audit_bars.py` from `results/audit-bars.json`: embedded Fashion-MNIST, {record['images']} test images, Linf "
        f"{255 * record['eps']:.0f}/255,",
        "accuracies in %. Vanilla and TGO are the demo's networks; AT (PGD-2 at 8/255) and AT + TGO were trained for ten epochs by the recipes",
        "`at` and `at-tgo`.",
        "",
        f"| {' | '.join(header)} |",
        "|" + "---|" * len(header),
    ]
    alone: dict[str, dict[str, int]] = {}
    for name, n in record["networks"].items():
        a = n.get("audit")
        if a is None or "members" not in n:
            lines.append(f"| {name} | not run |" + " |" * 6)
            continue
        low, high = (100 * v for v in a["worst_case"]["interval"])
        cells = [a["clean"]["accuracy"], a["masking"]["PGD-20"]]
        cells += [n[k] for k in ("PGD-100, training surrogate", "SA-PGD-100 ASSG", "torchattacks AutoAttack")]
        told = " | ".join(f"{100 * c:.0f}" for c in cells)
        lines.append(f"| {name} | {told} | **{100 * a['worst_case']['accuracy']:.0f}** ({low:.0f} to {high:.0f}) | {n['audit, seconds']:.0f} |")
        for member, row in n["members"].items():
            alone.setdefault(member, {})[name] = row["alone"]
    found = {m: [f"{k} ({v})" for k, v in where.items() if v] for m, where in alone.items()}
    lines += ["", "## Which member alone breaks a sample", "", f"Every member met every one of {record['panel']} images of each network.", ""]
    lines += [f"- {m}: {', '.join(where)}" for m, where in found.items() if where]
    none = [m for m, where in found.items() if not where]
    lines += ["", f"No sample of their own on these networks ({len(none)}): {', '.join(none)}.", ""]
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) < 2:
        PAGE.write_text(page(read_json(OUT)))
        return
    folder = Path(sys.argv[1])
    record = (
        read_json(OUT) if OUT.exists() else {"schema": SCHEMA, "kind": "audit bars", "images": IMAGES, "panel": PANEL, "eps": 8 / 255, "networks": {}}
    )
    if (record["images"], record["panel"]) != (IMAGES, PANEL):
        sys.exit(f"{OUT} was made with {record['images']} images and a panel of {record['panel']}: delete it first")
    record["machine"] = machine()
    for name in NETWORKS:
        measure(folder, name, record, IMAGES)
    PAGE.write_text(page(record))


if __name__ == "__main__":
    main()
