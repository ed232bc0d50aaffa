"""spikeguard sweep"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spikeguard.cli import common
from spikeguard.cli.progress import progress

if TYPE_CHECKING:
    from spikeguard.sweep.run import SweepRecord


def parser() -> common.Parser:
    """The options of a sweep over a TOML matrix; a study has its own."""
    parser = common.Parser(
        "sweep",
        "Train and audit every network of a matrix; one record. The same command continues where an earlier "
        "one stopped. 'spikeguard sweep embedded', from a checkout, runs the study of all defenses and has "
        "options of its own.",
    )
    parser.add_argument(
        "matrix", type=common.named, metavar="MATRIX.toml", help="base recipe, axes or rows, and how to audit"
    )
    parser.add_argument(
        "--out", type=common.path, help="folder of networks and record (default: runs/MATRIX)"
    )
    parser.add_argument(
        "--jobs",
        type=common.positive,
        default=1,
        help="networks at a time, each in a process with its share of the threads",
    )
    parser.add_argument(
        "--device", type=common.named, help="cpu or cuda (default: cuda if this machine has it)"
    )
    return parser


def run(arguments: list[str]) -> int:
    """Run a matrix or a study; returns the exit code."""
    from spikeguard.sweep.studies import study_main

    if arguments and not arguments[0].startswith("-") and not arguments[0].endswith(".toml"):
        return study_main(arguments[0])(arguments[1:])
    given = parser().read(arguments)

    from spikeguard.errors import UserError
    from spikeguard.runtime.stop import ctrl_c
    from spikeguard.sweep.matrix import read_matrix
    from spikeguard.sweep.run import RECORD_NAME, sweep

    if not given.matrix.endswith(".toml"):
        raise UserError(f"sweep: name the matrix first: spikeguard sweep {given.matrix} [options]")
    matrix = read_matrix(Path(given.matrix))
    out = given.out or Path("runs") / matrix.name
    common.start(given.threads)
    with progress() as shown, ctrl_c() as stop:
        record = sweep(matrix, out, device=given.device, progress=shown.show, stop=stop, jobs=given.jobs)
    if given.json:
        common.print_json(record.to_json())
        return 0
    _print_table(record)
    common.say(f"wrote {out / RECORD_NAME}; the networks are in {out / 'runs'}")
    common.say(f"next: spikeguard audit {out / 'runs'}/NAME --effort standard")
    return 0


def _print_table(record: SweepRecord) -> None:
    """Means over the seeds of every row."""
    from spikeguard.sweep.table import HEADER, table

    settings = record.settings
    title = (
        f"{record.name}: accuracy in %, means over seeds; {settings.effort} audit, {settings.norm} "
        f"{settings.eps:.4g}, {settings.images} {settings.part} images"
    )
    common.table(title, HEADER, table(record))
