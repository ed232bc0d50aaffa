"""docs/bench.md and docs/bench.svg from a bench's record.

    python tools/bench_page.py BENCH_FOLDER

Copies the record to results/bench.json; everything on the page comes from it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from spikeguard.records.bench import BenchRecord, Growth, PeakMemory, Timing
from spikeguard.records.files import write_bytes
from spikeguard.report.bench_picture import picture
from spikeguard.report.markdown import bullets, paragraph, table

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "results" / "bench.json"
PAGE = ROOT / "docs" / "bench.md"


def page(record: BenchRecord) -> str:
    """The page as Markdown."""
    frameworks = [f"{name} {version}" for name, version in record.peers.items() if name != "torchattacks"]
    columns = [f"{name} {precision}" for name in frameworks for precision in ("float32", "bfloat16")]
    header = ["task", "our best", "seconds", "over the fastest floor", *columns]
    rows = [_row(name, timing, columns) for name, timing in record.timed.items()]
    lines = ["# Speed and memory", "", "![times our best, per task](bench.svg)", ""]
    lines += [*table(header, rows), "", *bullets(_notes(record)), ""]
    lines += bullets([note for name, timing in record.timed.items() for note in _details(name, timing)])
    lines += _memory(record.memory) if record.memory else []
    lines += _growth(record.growth) if record.growth else []
    return "\n".join(lines) + "\n"


def _row(name: str, timing: Timing, columns: Sequence[str]) -> list[str]:
    others = [timing.over_best.get(column) for column in columns]
    times = ["not run" if o is None else f"{o:.2f} x" for o in others]
    return [name, timing.best, f"{timing.median[timing.best]:.2f}", f"{timing.best_over_floor:.2f}", *times]


def _notes(record: BenchRecord) -> list[str]:
    machine = record.machine
    versions = ", ".join(f"{k} {v}" for k, v in record.peers.items())
    return [
        "The last columns say how many times longer the others take: medians of ratios within rounds.",
        "The floor is the time of the convolutions and linear layers of the step alone.",
        "Ours with TGO does more than the others, which have no penalty and no noise.",
        f"Medians of {record.settings.rounds} rounds; all contenders take turns.",
        f"{machine.cores} cores, {record.threads} threads, {machine.device} "
        f"({', '.join(machine.instructions)}), torch {machine.versions['torch']}, {versions}.",
        "Made by `spikeguard bench` and `tools/bench_page.py` from [the record](../results/bench.json).",
    ]


def _details(name: str, timing: Timing) -> list[str]:
    lines = []
    if timing.parts:
        shares = [f"{part} {100 * share:.0f} %" for part, share in timing.parts.items() if share >= 0.005]
        costs = [
            f"{timing.median[f'TGO {q}'] / timing.median[f'vanilla {q}']:.2f} times vanilla in {q}"
            for q in ("float32", "bfloat16")
        ]
        lines.append(f"{name}: {'; '.join(shares)}. TGO takes {' and '.join(costs)}.")
    if dropping := timing.dropping:
        same = [f"{100 * v:.1f} % as {k} with torchattacks" for k, v in dropping.same_outcome.items()]
        lines.append(
            f"{name}: {100 * dropping.survive:.0f} % of the images survive at {255 * dropping.eps:.1f}/255; "
            f"dropping broken samples is {dropping.faster:.2f} times faster. Equal outcomes: "
            f"{', '.join(same)}."
        )
    return lines


def _memory(memory: PeakMemory) -> list[str]:
    def size(value: float | None) -> str:
        return "not measured" if value is None else f"{value / 2**30:.2f}"

    items = [
        f"{subject}: " + ", ".join(f"{k} {size(v)}" for k, v in sizes.items())
        for subject, sizes in memory.bytes.items()
    ]
    return ["", "## Peak memory of a training step, GiB", "", *bullets(items)]


def _growth(growth: Growth) -> list[str]:
    def size(value: float | None) -> str:
        return "does not fit" if value is None else f"{value / 2**30:.1f} GiB"

    rows = []
    for axis, curve in growth.curves.items():
        pairs = zip(curve.values, curve.seconds, strict=True)
        rows.append([axis, ", ".join(f"{v}: {s:.3f}" for v, s in pairs), f"{curve.power:.2f}"])
    sizes = ", ".join(f"{size(v)} ({k})" for k, v in growth.large.bytes.items())
    header = ("axis", "seconds at each value", "power between the last two")
    text = f"A training step with TGO of wrn16 at 224x224, T = 16, batch 8: {sizes}."
    return ["", "## Growth", "", *table(header, rows), "", *paragraph(text)]


def main(record: BenchRecord) -> None:
    record.write(RECORD)
    write_bytes(PAGE.with_suffix(".svg"), picture(record).encode())
    write_bytes(PAGE, page(record).encode())


if __name__ == "__main__":
    main(BenchRecord.read(Path(sys.argv[1]) / "bench.json"))
