"""What the audit finds on four networks, compared with other attacks: results/audit-bars.json, docs/audit.md.

python tools/audit_bars.py FOLDER    (without FOLDER: only docs/audit.md, from the record)

FOLDER holds the runs `vanilla` and `tgo` (the demo's), `at` and `at-tgo` (`spikeguard train at --epochs 10`).
For each of them: the standard audit, PGD-100 with the training surrogate, SA-PGD-100 with ASSG, AutoAttack of
torchattacks. The same command continues where an earlier one stopped. The page also says, from the record of
`tools/audit_panel.py`, which samples only one member breaks, and, if there is a record of
`tools/local_search.py`, what longer searches break.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from audit_panel import OUT as PANEL
from audit_panel import PanelRecord, earned, idle, lost
from local_search import OUT as LONGER
from local_search import SearchRecord
from local_search import section as longer_searches

import spikeguard as sg
from spikeguard.auditing.suite import FULL, RESERVE, STANDARD, VERSION
from spikeguard.data.images import Images
from spikeguard.networks.classifier import Classifier
from spikeguard.records.base import Record
from spikeguard.records.files import write_bytes
from spikeguard.records.schema import Accuracy, Cost, Masking, SuiteId
from spikeguard.report.markdown import bullets, paragraph, table
from spikeguard.runtime.machine import Machine, machine
from spikeguard.stats import COVERS
from spikeguard.training.load import load_classifier

ROOT = Path(__file__).parents[1]
OUT, PAGE = ROOT / "results" / "audit-bars.json", ROOT / "docs" / "audit.md"
NETWORKS, IMAGES, EPS = ("at", "tgo", "vanilla", "at-tgo"), 100, 8 / 255
THREAT = sg.Linf(EPS)
LARGE = "tgo"
"""The network that is judged on a thousand images, too."""
SINCE = {
    "suite-v1": "Now the local search attacks from the best points of all gradients and takes the place of "
    "Square-5000, which `full` keeps. ",
    "suite-v3": "Now the local search goes on where images are within its reach. ",
}
"""What has changed in `standard` since a panel was made, by its suite."""
TITLES = {m.id: m.title for m in (*FULL, *STANDARD, *RESERVE)}


@dataclass(frozen=True)
class BarsAudit:
    """What is kept of an audit."""

    verdict: str
    clean: Accuracy
    worst_case: Accuracy
    masking: Masking
    suite: SuiteId
    cost: Cost
    without_family: dict[str, float]
    after: dict[str, float]
    only_this_family: dict[str, int]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class BarsRow:
    """A network: accuracy that each attack leaves, and ``seconds`` by the names of these fields."""

    audit: BarsAudit | None = None
    pgd100: float | None = None
    sapgd100: float | None = None
    autoattack: float | None = None
    audit_1000: BarsAudit | None = None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BarsRecord(Record):
    """Four networks under the audit and under other attacks."""

    kind: ClassVar[str] = "audit bars"
    images: int
    eps: float
    networks: dict[str, BarsRow]
    machine: Machine


def left(net: Classifier, y: torch.Tensor, found: torch.Tensor) -> float:
    """Accuracy on attacked images."""
    with torch.no_grad():
        return float((net(found).argmax(1) == y).double().mean())


def autoattack(net: Classifier, x: torch.Tensor, y: torch.Tensor) -> float:
    """Accuracy that AutoAttack (standard) of torchattacks leaves."""
    import torchattacks

    attack = torchattacks.AutoAttack(net, norm="Linf", eps=EPS, version="standard", n_classes=10, seed=0)
    return left(net, y, attack(x, y))


def standard(net: Classifier, images: Images) -> BarsAudit:
    """What is kept of the standard audit."""
    record = sg.audit(net, images.pixels(), images.y, THREAT, effort="standard").record
    assert record.masking is not None
    return BarsAudit(
        verdict=record.verdict,
        clean=record.clean,
        worst_case=record.worst_case,
        masking=record.masking,
        suite=record.suite,
        cost=record.cost,
        without_family=record.without_family,
        after=record.after,
        only_this_family={m.id: m.only_this_family for m in record.members},
        flags=tuple(f.id for f in record.flags),
    )


def measure(folder: Path, name: str, record: BarsRecord) -> BarsRecord:
    """The record with whatever it lacks of a network, written after each attack."""
    net, data = load_classifier(folder / name), sg.load_data("embedded")
    test = data.test.balanced(record.images)
    x, y = test.pixels(), test.y
    work: dict[str, Callable[[], BarsAudit | float]] = {
        "audit": lambda: standard(net, test),
        "pgd100": lambda: left(net, y, sg.pgd(net, x, y, THREAT, steps=100, restarts=1).x),
        "sapgd100": lambda: left(net, y, sg.sapgd(net, x, y, THREAT, steps=100).x),
        "autoattack": lambda: autoattack(net, x, y),
    }
    if name == LARGE and set(NETWORKS) <= set(record.networks):  # last, it takes as long as all the others
        work["audit_1000"] = lambda: standard(net, data.test.balanced(1000))
    for key, run in work.items():
        row = record.networks.get(name, BarsRow())
        if getattr(row, key) is None:
            begun = time.perf_counter()
            result = run()
            seconds = round(time.perf_counter() - begun, 1)
            row = replace(row, **{key: result}, seconds={**row.seconds, key: seconds})  # type: ignore[arg-type]
            record = replace(record, networks={**record.networks, name: row})
            record.write(OUT)
            print(f"{name}: {key} {result if isinstance(result, float) else ''} {seconds} s", flush=True)
    return record


def page(record: BarsRecord) -> str:
    """docs/audit.md."""
    header = [
        *("network", "clean", "PGD-20, own surrogate", "PGD-100, own surrogate", "SA-PGD-100, ASSG"),
        *("torchattacks AutoAttack", "standard audit (95 % interval)", "audit, s"),
    ]
    lines = ["# What the audit finds", ""]
    lines += paragraph(
        "The same networks under common attacks and under the audit. The audit should be the lowest in "
        f"its row. Embedded Fashion-MNIST, {record.images} test images, Linf {255 * record.eps:.0f}/255, "
        f"accuracies in %. An interval covers {COVERS}."
    )
    lines += ["", *table(header, [_line(name, row) for name, row in record.networks.items()]), ""]
    lines += [*bullets(_notes(record)), ""]
    if LONGER.exists():
        lines += longer_searches(SearchRecord.read(LONGER))
    return "\n".join([*lines, *members_section(PanelRecord.read(PANEL))])


def _line(name: str, row: BarsRow) -> list[str]:
    audit = row.audit
    if audit is None or row.autoattack is None:
        return [name, "not run"]
    worst = audit.worst_case
    cells = (audit.clean.value, audit.masking.pgd20, row.pgd100, row.sapgd100, row.autoattack)
    return [
        name,
        *("" if c is None else f"{100 * c:.0f}" for c in cells),
        f"**{100 * worst.value:.0f}** ({100 * worst.low:.0f} to {100 * worst.high:.0f})",
        f"{row.seconds['audit']:.0f}",
    ]


def _notes(record: BarsRecord) -> list[str]:
    """How much lower than other attacks the audit is, and what it says about itself."""
    audits = {name: row.audit for name, row in record.networks.items() if row.audit}
    rows = {name: record.networks[name] for name in audits}

    def lower(values: list[float | None]) -> str:
        pairs = zip(values, audits.values(), strict=True)
        return " / ".join(str(round(100 * (v - a.worst_case.value))) for v, a in pairs if v is not None)

    weaker = [n for n, a in audits.items() if (rows[n].pgd100 or 0.0) > a.masking.pgd20]
    notes = [
        f"The audit is {lower([r.autoattack for r in rows.values()])} points below AutoAttack of "
        f"torchattacks and {lower([r.sapgd100 for r in rows.values()])} below SA-PGD-100 with ASSG alone.",
        "Flags (no errors): "
        + "; ".join(f"{name}: {', '.join(a.flags) or 'none'}" for name, a in audits.items())
        + ".",
    ]
    if weaker:
        names = " and ".join(f"`{name}`" for name in weaker)
        notes.append(
            f"On {names} a hundred steps of PGD break fewer images than twenty: the gradient of the "
            "surrogate is misleading."
        )
    if (large := record.networks[LARGE].audit_1000) is not None:
        worst, minutes = large.worst_case, record.networks[LARGE].seconds["audit_1000"] / 60
        text = (
            f"`standard` on 1,000 images of TGO, as it is meant to be used: {100 * worst.value:.1f} % "
            f"({100 * worst.low:.1f} to {100 * worst.high:.1f}) in {minutes:.1f} minutes on two cores."
        )
        if audits[LARGE].suite != large.suite:
            text += " That audit used another version of the suite than the table."
        notes.append(text)
    notes.append(
        "Vanilla and TGO are the demo's networks. AT (PGD-2 at 8/255) and AT + TGO trained for ten epochs by "
        "the recipes `at` and `at-tgo`."
    )
    return [*notes, "Made by `tools/audit_bars.py` from `results/audit-bars.json`."]


def members_section(panel: PanelRecord) -> list[str]:
    """Which samples only one member breaks, and which members left the suite because they have none."""
    alone = earned(panel, panel.standard)
    known = {panel.id_of_today(m) for row in panel.networks.values() for m in row.broken}
    tried = sum(row.images for row in panel.networks.values())
    lines = ["## Which samples only one member breaks", ""]
    lines += bullets(
        f"{TITLES.get(member, member)}: "
        + ", ".join(f"{place} ({places.count(place)})" for place in dict.fromkeys(places))
        for member, places in alone.items()
        if places
    )
    needed = [m for m in STANDARD if m.id in panel.standard and not alone.get(m.id)]
    unused = idle(panel)
    kept = ", ".join(m.title for m in needed if m.id not in unused)
    reserve = [m.title for m in RESERVE if m.id in known]
    notes = [
        f"Every member of `standard` in {panel.suite} attacked {tried} images that are right without attack, "
        f"of {len(panel.networks)} networks and budgets (`results/audit-panel.json`, by "
        "`tools/audit_panel.py`).",
        "From the most expensive member down, each one is struck that broke nothing which the others do not "
        "break; the members above remain. `standard` breaks all that the whole suite breaks there.",
        f"If the members are chosen without one network, they miss {lost(panel)} of its samples, "
        "summed over networks (without argmax, which only hard-label attacks can break).",
        f"Kept as controls, to measure masking, or because the local search begins at their points: {kept}.",
        *_unused(unused),
        f"In the reserve ({len(reserve)}): {'; '.join(reserve)}.",
    ]
    if panel.suite != VERSION:
        notes.append(
            f"This panel is of {panel.suite}. {SINCE.get(panel.suite, '')}"
            f"The panel of {VERSION} is not made yet."
        )
    return [*lines, "", "Notes:", "", *bullets(notes), ""]


def _unused(shares: dict[str, float]) -> list[str]:
    """What earns nothing on the panel, and what it costs."""
    if not shares:
        return []
    names = ", ".join(TITLES[member] for member in shares)
    return [
        f"{names}: nothing that the others do not break, for {100 * sum(shares.values()):.0f} % of the "
        "seconds; the next version of the suite may do without."
    ]


def main() -> None:
    if len(sys.argv) > 1:
        record = BarsRecord.read(OUT) if OUT.exists() else BarsRecord(IMAGES, EPS, {}, machine())
        if record.images != IMAGES:
            sys.exit(f"{OUT} was made with {record.images} images: delete it first")
        record = replace(record, machine=machine())
        for name in (*NETWORKS, LARGE):
            record = measure(Path(sys.argv[1]), name, record)
    write_bytes(PAGE, page(BarsRecord.read(OUT)).encode())


if __name__ == "__main__":
    main()
