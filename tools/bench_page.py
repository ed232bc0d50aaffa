"""docs/bench.md and docs/bench.svg from a bench's record.

    python tools/bench_page.py BENCH_FOLDER

Copies the record to results/bench.json; everything on the page comes from it.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spikeguard.records.files import read_json, write_bytes, write_json
from spikeguard.report.bench_picture import picture
from spikeguard.report.markdown import bullets, paragraph, table

ROOT = Path(__file__).parent.parent
Bench = Mapping[str, Any]
"""A bench's record, or a part of it."""


def page(record: Bench) -> str:
    """The page as Markdown."""
    frameworks = _frameworks(record["peers"])
    columns = [f"{name} {precision}" for name in frameworks for precision in ("float32", "bfloat16")]
    header = ["task", "our best", "seconds", "over the fastest floor", *columns]
    lines = ["# Speed and memory", "", "![times our best, per task](bench.svg)", ""]
    rows = [_line(name, entry, columns) for name, entry in record["tasks"].items() if "median" in entry]
    lines += [*table(header, rows), "", *bullets(_notes(record)), ""]
    for name, entry in record["tasks"].items():
        lines += _details(name, entry)
    return "\n".join(lines) + "\n"


def _line(name: str, entry: Bench, columns: Sequence[str]) -> list[str]:
    best = entry["best"]
    others = [entry["over_best"].get(column) for column in columns]
    times = ["not run" if o is None else f"{o:.2f} x" for o in others]
    return [name, best, f"{entry['median'][best]:.2f}", f"{entry['best_over_floor']:.2f}", *times]


def _notes(record: Bench) -> list[str]:
    machine, peers = record["machine"], record["peers"]
    versions = ", ".join(f"{k} {v}" for k, v in peers.items())
    return [
        "The last columns say how many times longer the others take: medians of ratios within rounds.",
        "The floor is the time of the convolutions and linear layers of the step alone.",
        "Ours with TGO does more than the others, which have no penalty and no noise.",
        f"Medians of {record['settings']['rounds']} rounds; all contenders take turns.",
        f"{machine['cores']} cores, {record['threads']} threads, {machine['device']} "
        f"({', '.join(machine['instructions'])}), torch {machine['versions']['torch']}, {versions}.",
        "Made by `spikeguard bench` and `tools/bench_page.py` from [the record](../results/bench.json).",
    ]


def _frameworks(peers: dict[str, str]) -> list[str]:
    return [f"{name} {version}" for name, version in peers.items() if name != "torchattacks"]


def _details(name: str, entry: Bench) -> list[str]:
    if "bytes" in entry:
        return _memory(name, entry)
    if "curves" in entry:
        return _growth(entry)
    lines = []
    if "parts" in entry:
        shares = [f"{part} {100 * share:.0f} %" for part, share in entry["parts"].items() if share >= 0.005]
        median = entry["median"]
        costs = [
            f"{median[f'TGO {q}'] / median[f'vanilla {q}']:.2f} times vanilla in {q}"
            for q in ("float32", "bfloat16")
        ]
        lines.append(f"{name}: {', '.join(shares)}. TGO takes {' and '.join(costs)}.")
    if "dropping_faster" in entry:
        same = [f"{100 * v:.1f} % as {k} with torchattacks" for k, v in entry["same_outcome"].items()]
        lines.append(
            f"{name}: {100 * entry['survive']:.0f} % of the images survive at {255 * entry['eps']:.1f}/255; "
            f"dropping broken samples is {entry['dropping_faster']:.2f} times faster. Equal outcomes: "
            f"{', '.join(same)}."
        )
    return [*bullets(lines), ""] if lines else []


def _memory(name: str, entry: Bench) -> list[str]:
    def size(value: float | None) -> str:
        return "not measured" if value is None else f"{value / 2**30:.2f}"

    subjects = entry["bytes"].items()
    items = [
        f"{subject}: " + ", ".join(f"{k} {size(v)}" for k, v in sizes.items()) for subject, sizes in subjects
    ]
    return [f"## {name[0].upper()}{name[1:]}, GiB", "", *bullets(items), ""]


def _growth(entry: Bench) -> list[str]:
    def size(value: float | None) -> str:
        return "does not fit" if value is None else f"{value / 2**30:.1f} GiB"

    rows = []
    for axis, curve in entry["curves"].items():
        pairs = zip(curve["values"], curve["seconds"], strict=True)
        rows.append([axis, ", ".join(f"{v}: {s:.3f}" for v, s in pairs), f"{curve['power']:.2f}"])
    sizes = ", ".join(f"{k} {size(v)}" for k, v in entry["large"]["bytes"].items())
    header = ("axis", "seconds at each value", "power between the last two")
    text = f"A training step with TGO of wrn16 at 224x224, T = 16, batch 8: {sizes}."
    return ["## Growth", "", *table(header, rows), "", *paragraph(text), ""]


def main(folder: Path) -> None:
    record = read_json(folder / "bench.json")
    write_json(ROOT / "results" / "bench.json", record)
    write_bytes(ROOT / "docs" / "bench.svg", picture(record).encode())
    write_bytes(ROOT / "docs" / "bench.md", page(record).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
