"""``spikeguard bench``: speed and memory."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from spikeguard.cli import common
from spikeguard.cli.progress import progress

if TYPE_CHECKING:
    from spikeguard.records.bench import Growth, PeakMemory, Timing


def parser() -> common.Parser:
    made = common.Parser(
        "bench",
        "Speed and memory against the floor of this machine and against the frameworks that are installed.",
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help="the small network only, small batches, no growth curves: minutes instead of an hour",
    )
    made.add_argument(
        "--rounds",
        type=common.positive,
        help="rounds of every task, all contenders in turn; the median counts (default 5)",
    )
    made.add_argument("--device", type=common.named, help="cpu or cuda (default: cuda where there is one)")
    made.add_argument(
        "--out",
        type=common.path,
        default=Path("spikeguard-bench"),
        help="folder for the record and the picture",
    )
    made.add_argument(
        "--resume", action="store_true", help="keep the tasks that an interrupted bench has finished"
    )
    return made


def run(arguments: list[str]) -> int:
    given = parser().read(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would write to stderr
    common.start(given.threads)
    from spikeguard.bench import run as bench
    from spikeguard.records.files import check_writable, write_bytes
    from spikeguard.report.bench_picture import picture
    from spikeguard.training.builder import pick_device

    check_writable(given.out / "bench.json")
    begun = time.perf_counter()
    settings = bench.Settings(given.quick, given.rounds or 5, pick_device(given.device).type)
    with progress() as shown:
        record = bench.run(settings, given.out / "bench.json", given.resume, shown.show)
    write_bytes(given.out / "bench.svg", picture(record).encode())
    if given.json:
        common.print_json(record.to_json())
        return 0
    for name, timing in record.timed.items():
        _show_timing(name, timing)
    if record.memory:
        _show_memory(record.memory)
    if record.growth:
        _show_growth(record.growth)
    common.say(
        f"\nwrote {given.out / 'bench.json'} and {given.out / 'bench.svg'} (open it in a browser); "
        f"{time.perf_counter() - begun:.0f} s"
    )
    if missing := [name for name in ("spikingjelly", "snntorch", "torchattacks") if name not in record.peers]:
        common.say(
            f"next: install {', '.join(missing)} beside spikeguard, and what needs them is timed as well "
            "(--no-deps keeps your torch)"
        )
    return 0


def _show_timing(name: str, timing: Timing) -> None:
    rows = [
        [
            contender,
            f"{seconds:.3f}",
            f"{timing.images_per_second[contender]:.0f}",
            f"{timing.over_best[contender]:.2f}",
        ]
        for contender, seconds in sorted(timing.median.items(), key=lambda item: item[1])
    ]
    title = (
        f"{name}: {timing.images} images; our best is {timing.best}, "
        f"{timing.best_over_floor:.2f} times the fastest floor"
    )
    common.table(title, ["", "seconds", "images/s", "times our best"], rows)
    if dropping := timing.dropping:
        common.say(
            f"{100 * dropping.survive:.0f} % survive at {255 * dropping.eps:.1f}/255; dropping broken "
            f"samples is {dropping.faster:.2f} times faster"
        )
        for other, share in dropping.same_outcome.items():
            common.say(f"the same outcome as {other} with torchattacks for {100 * share:.1f} % of the images")
    if timing.parts:
        shares = (f"{part} {100 * share:.0f} %" for part, share in timing.parts.items())
        common.say("where the time goes: " + "; ".join(shares))


def _show_memory(memory: PeakMemory) -> None:
    for subject, sizes in memory.bytes.items():
        rows = [
            [contender, "not measured" if size is None else f"{size / 2**30:.2f}"]
            for contender, size in sizes.items()
        ]
        common.table(f"peak memory of a training step, {subject}", ["", "GiB"], rows)


def _show_growth(growth: Growth) -> None:
    rows = [
        [
            axis,
            " ".join(f"{v}: {s:.3f}" for v, s in zip(curve.values, curve.seconds, strict=True)),
            f"{curve.power:.2f}",
        ]
        for axis, curve in growth.curves.items()
    ]
    title = "growth of a guarded training step (and of PGD), seconds"
    common.table(title, ["", "value: seconds", "power at the end"], rows)
    sizes = "; ".join(
        f"{kind}: {'does not fit' if size is None else f'{size / 2**30:.1f} GiB'}"
        for kind, size in growth.large.bytes.items()
    )
    common.say(f"wrn16 at 224x224, T = 16, batch 8: {sizes}")
