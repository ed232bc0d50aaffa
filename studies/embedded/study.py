"""``spikeguard sweep embedded``: run the study, write its record, its page and its picture."""

from __future__ import annotations

from pathlib import Path

from spikeguard.cli import common
from spikeguard.cli.progress import progress
from spikeguard.data.sources import load_data
from spikeguard.records.files import write_bytes
from spikeguard.records.studies import StudyRecord
from spikeguard.runtime.stop import ctrl_c
from spikeguard.sweep.cells import Context
from studies.embedded.matrix import StudySize
from studies.embedded.page import page
from studies.embedded.picture import picture
from studies.embedded.stages import RECORD_NAME, run


def parser() -> common.Parser:
    """The options of the study."""
    parser = common.Parser(
        "sweep embedded",
        "Train every defense under the same conditions, rank the networks by the quick audit, confirm the "
        "best on fresh seeds, score the finalists once on test images. The same command continues where an "
        "earlier one stopped.",
    )
    number = common.positive
    parser.add_argument(
        "--out", type=Path, default=Path("runs/embedded"), help="folder of networks, record and page"
    )
    parser.add_argument("--seeds", type=number, default=3, help="seeds a row; a larger number adds networks")
    parser.add_argument("--epochs", type=number, default=4, help="epochs of every training")
    parser.add_argument("--ranked-on", type=number, default=100, help="validation images of the quick audits")
    parser.add_argument(
        "--scored-on",
        type=number,
        default=200,
        help="test images of the standard audits, a multiple of the classes",
    )
    parser.add_argument("--only-rank", action="store_true", help="stop before fresh seeds and test images")
    parser.add_argument(
        "--jobs", type=number, default=1, help="networks at a time, each with its share of the threads"
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda if this machine has it)")
    return parser


def main(arguments: list[str]) -> int:
    """Run the study from the command line; returns the exit code."""
    given = parser().read(arguments)
    common.start(given.threads)
    size = StudySize(given.seeds, given.epochs, given.ranked_on, given.scored_on)
    path, written = given.out / RECORD_NAME, given.out / "embedded.md"
    try:
        with progress() as shown, ctrl_c() as stop:
            context = Context(given.out, load_data("embedded"), given.device, shown.show, stop)
            record = run(size, context, finish=not given.only_rank, jobs=given.jobs)
    finally:
        if path.exists():
            kept = StudyRecord.read(path)
            write_bytes(written, page(kept).encode())
            write_bytes(written.with_suffix(".svg"), picture(kept).encode())
    if given.json:
        common.print_json(record.to_json())
        return 0
    runs = given.out / "runs"
    print(page(record))
    print(f"wrote {path}, {written} and its picture; the networks are in {runs}")
    print(
        f"next: spikeguard audit {runs}/NAME --effort standard, or the same command with --seeds "
        f"{given.seeds + 1}"
    )
    return 0
