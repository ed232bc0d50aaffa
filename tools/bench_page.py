"""docs/bench.md and docs/bench.svg from a bench's record.

    python tools/bench_page.py BENCH_FOLDER

Copies the record to results/bench.json; everything on the page comes from it.
"""

import sys
from pathlib import Path
from typing import Any

from spikeguard.records.files import read_json, write_bytes, write_json
from spikeguard.report.bench_picture import picture

ROOT = Path(__file__).parent.parent


def page(record: dict[str, Any]) -> str:
    """The page as Markdown."""
    about, peers = record["machine"], record["peers"]
    names = ", ".join(f"{k} {v}" for k, v in peers.items())
    where = (
        f"{about['cores']} cores, {record['threads']} threads, {about['device']} "
        f"({', '.join(about['instructions'])})"
    )
    lines = [
        "# Speed and memory",
        "",
        "Made by `spikeguard bench` and `tools/bench_page.py` from [the record](../results/bench.json):",
        f"{where}, torch {about['versions']['torch']}, {names};",
        f"medians of {record['settings']['rounds']} rounds, all contenders in turns.",
        "The floor is what the convolutions and linear layers of the step cost alone.",
        "Ours with TGO does more than theirs, which have no penalty and no noise. Ratios are medians within "
        "rounds.",
        "",
        "![times our best, per task](bench.svg)",
        "",
        "| task | our best | seconds | over the fastest floor | "
        + " | ".join(f"{p} {q}" for p in _frameworks(peers) for q in ("float32", "bfloat16"))
        + " |",
        "|" + "---|" * (4 + 2 * len(_frameworks(peers))),
    ]
    for name, entry in record["tasks"].items():
        if "median" in entry:
            others = [
                entry["over_best"].get(f"{p} {q}")
                for p in _frameworks(peers)
                for q in ("float32", "bfloat16")
            ]
            cells = [
                name,
                entry["best"],
                f"{entry['median'][entry['best']]:.2f}",
                f"{entry['best_over_floor']:.2f}",
            ]
            lines.append(
                "| "
                + " | ".join([*cells, *("not run" if o is None else f"{o:.2f} x" for o in others)])
                + " |"
            )
    lines += ["", "How many times longer the others take is in the last columns.", ""]
    for name, entry in record["tasks"].items():
        lines += _details(name, entry)
    return "\n".join(lines) + "\n"


def _frameworks(peers: dict[str, str]) -> list[str]:
    return [f"{name} {version}" for name, version in peers.items() if name != "torchattacks"]


def _details(name: str, entry: dict[str, Any]) -> list[str]:
    if "bytes" in entry:
        lines = [f"## {name[0].upper()}{name[1:]}, GiB", ""]
        for subject, told in entry["bytes"].items():
            lines += [
                f"- {subject}: "
                + ", ".join(
                    f"{k} {'not measured' if v is None else f'{v / 2**30:.2f}'}" for k, v in told.items()
                )
            ]
        return [*lines, ""]
    if "curves" in entry:
        lines = [
            "## Growth",
            "",
            "| axis | seconds at each value | power between the last two |",
            "|---|---|---|",
        ]
        for axis, c in entry["curves"].items():
            pairs = zip(c["values"], c["seconds"], strict=True)
            lines.append(f"| {axis} | {', '.join(f'{v}: {s:.3f}' for v, s in pairs)} | {c['power']:.2f} |")
        sizes = ", ".join(
            f"{k} {'does not fit' if v is None else f'{v / 2**30:.1f} GiB'}"
            for k, v in entry["large"]["bytes"].items()
        )
        return [*lines, "", f"A training step with TGO of wrn16 at 224x224, T = 16, batch 8: {sizes}.", ""]
    lines = []
    if "parts" in entry:
        shares = ", ".join(
            f"{part} {100 * share:.0f} %" for part, share in entry["parts"].items() if share >= 0.005
        )
        cost = " and ".join(
            f"{entry['median'][f'TGO {q}'] / entry['median'][f'vanilla {q}']:.2f} times vanilla in {q}"
            for q in ("float32", "bfloat16")
        )
        lines += [f"- {name}: {shares}. TGO takes {cost}."]
    if "dropping_faster" in entry:
        same = ", ".join(
            f"{100 * v:.1f} % as {k} with torchattacks" for k, v in entry["same_outcome"].items()
        )
        survive = f"{100 * entry['survive']:.0f} % of the images survive at {255 * entry['eps']:.1f}/255"
        lines += [
            f"- {name}: {survive}; dropping broken samples is {entry['dropping_faster']:.2f} times faster. "
            f"Equal outcomes: {same}."
        ]
    return [*lines, ""] if lines else []


def main(folder: Path) -> None:
    record = read_json(folder / "bench.json")
    write_json(ROOT / "results" / "bench.json", record)
    write_bytes(ROOT / "docs" / "bench.svg", picture(record).encode())
    write_bytes(ROOT / "docs" / "bench.md", page(record).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
