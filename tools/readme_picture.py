"""The picture and the numbers of the README, from a demo's record.

    python tools/readme_picture.py DEMO_FOLDER

Writes docs/demo.svg, copies the record to results/demo.json and rewrites the README between its two 'demo
numbers' marks. The folder must hold the median seed of results/demo-seeds.json, not the luckiest.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from demo_seeds import median_seed

from spikeguard.records.files import read_json, write_bytes
from spikeguard.records.studies import DemoRecord
from spikeguard.report.plots import bars
from spikeguard.report.text import with_interval
from spikeguard.stats import COVERS

ROOT = Path(__file__).parent.parent
SEEDS = ROOT / "results" / "demo-seeds.json"
MARKS = re.compile(r"(<!-- demo numbers -->\n).*(<!-- end of demo numbers -->)", re.S)


def numbers(record: DemoRecord, seeds: Sequence[Mapping[str, float]]) -> str:
    """The README's table, how it was measured, what one attack overstates, and the flags of the audits.

    ``seeds``: the rows of results/demo-seeds.json.
    """
    eps = record.eps[0]
    lines = [
        "| accuracy in % at " + eps + " | clean | PGD-20, training surrogate | worst case |",
        "|---|---|---|---|",
    ]
    for n in record.networks:
        a = n.attacks[eps]
        cells = " | ".join(with_interval(t) for t in (a.clean, a.alone["pgd20"], a.worst_case))
        lines.append(f"| {n.label} | {cells} |")
    vanilla, tgo = (_overstated(record, role, eps) for role in ("vanilla", "tgo"))
    return "\n".join(
        [
            *lines,
            "",
            _conditions(record),
            _over_seeds(seeds),
            f"PGD-20 with the training surrogate overstates vanilla by {vanilla:.1f} points and TGO by "
            f"{tgo:.1f}.",
            _flags(record),
            "",
        ]
    )


def _conditions(record: DemoRecord) -> str:
    """What the numbers rest on."""
    suite = record.networks[0].attacks[record.eps[0]].suite
    return f"{record.images} images, {suite.version} {suite.effort}; 95 % intervals cover {COVERS}."


def _over_seeds(rows: Sequence[Mapping[str, float]]) -> str:
    """How the shown seed was chosen, and what TGO gains at least over all seeds."""
    least = min(r["gain_over_control"] for r in rows)
    return (
        f"The median of {len(rows)} seeds. In each, TGO leaves at least {least:.1f} points more than "
        "both controls."
    )


def _flags(record: DemoRecord) -> str:
    """Every flag of the audits, with the networks that have it."""
    raised: dict[str, list[str]] = {}
    for n in record.networks:
        for flag in n.attacks[record.eps[0]].flags:
            raised.setdefault(flag.id, []).append(n.label)
    parts = [
        f"[{id}](docs/flags/{id}.md) ({'all' if len(labels) == len(record.networks) else ', '.join(labels)})"
        for id, labels in raised.items()
    ]
    return f"Flags of these audits: {'; '.join(parts) or 'none'}."


def _overstated(record: DemoRecord, role: str, eps: str) -> float:
    """Points between PGD-20 with the training surrogate and the worst case of a network."""
    attacks = next(n for n in record.networks if n.role == role).attacks[eps]
    return 100 * (attacks.alone["pgd20"].value - attacks.worst_case.value)


def main(folder: Path) -> None:
    record, rows = DemoRecord.read(folder / "demo.json"), read_json(SEEDS)["rows"]
    if record.seed != median_seed(rows):
        sys.exit(f"readme_picture: {folder} holds seed {record.seed}, the median is seed {median_seed(rows)}")
    record.write(ROOT / "results" / "demo.json")
    write_bytes(ROOT / "docs" / "demo.svg", bars(record.networks, record.eps[0]).encode())
    readme = ROOT / "README.md"
    text = MARKS.sub(lambda m: m[1] + numbers(record, rows) + m[2], readme.read_text())
    write_bytes(readme, text.encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
