"""``spikeguard sweep``: a study of all defenses."""

from __future__ import annotations

from pathlib import Path

from spikeguard.cli import common


def parser() -> common.Parser:
    made = common.Parser(
        "sweep",
        "Train every defense under the same conditions, rank them by the quick audit, confirm the best on "
        "fresh seeds, score the finalists once on test images. The same command goes on where it stopped.",
    )
    made.add_argument("study", choices=["embedded"], help="which study")
    made.add_argument(
        "--out", type=Path, default=Path("runs/embedded"), help="folder of networks, record and page"
    )
    made.add_argument(
        "--seeds",
        type=common.positive,
        default=3,
        help="seeds of every network; a larger number adds to what is there",
    )
    made.add_argument("--epochs", type=common.positive, default=4, help="epochs of every training")
    made.add_argument(
        "--ranked-on", type=common.positive, default=100, help="validation images of the quick audits"
    )
    made.add_argument(
        "--scored-on",
        type=common.positive,
        default=200,
        help="test images of the standard audits (a multiple of the classes)",
    )
    made.add_argument(
        "--only-rank", action="store_true", help="leave the fresh seeds and the test images for later"
    )
    made.add_argument(
        "--jobs",
        type=common.positive,
        default=1,
        help="networks at a time, each in a process with its share of the threads",
    )
    made.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    return made


def run(arguments: list[str]) -> int:
    given = parser().read(arguments)
    common.start(given.threads)

    from spikeguard.records.files import read_json, write_bytes
    from spikeguard.runtime.stop import ctrl_c
    from spikeguard.study import sweep as study
    from spikeguard.study.matrix import Settings
    from spikeguard.study.pages import page
    from spikeguard.study.picture import picture

    settings, record, written = (
        Settings(given.seeds, given.epochs, given.ranked_on, given.scored_on),
        given.out / study.MARK,
        given.out / "embedded.md",
    )
    try:
        with common.progress() as shown, ctrl_c() as stop:
            result = study.run(
                settings, given.out, shown.show, stop, given.device, not given.only_rank, given.jobs
            )
    finally:
        if record.exists() and "wanted" in (kept := read_json(record)):
            write_bytes(written, page(kept).encode())
            write_bytes(written.with_suffix(".svg"), picture(kept).encode())
    if given.json:
        common.print_json(result)
        return 0
    print(page(result))
    print(f"wrote {record}, {written} and its picture; networks in {given.out / 'runs'}")
    print(
        f"next: spikeguard audit {given.out / 'runs'}/NAME --effort standard, or the same command with "
        f"--seeds {given.seeds + 1}"
    )
    return 0
