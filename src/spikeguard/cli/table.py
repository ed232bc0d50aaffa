"""``spikeguard table``: networks by attacks, at one budget or several."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from spikeguard.cli import common
from spikeguard.cli.progress import progress

if TYPE_CHECKING:
    from spikeguard.tables.measure import Subject

EPILOG = """attacks, separated by commas: a name of 'spikeguard attack --list' or mtpgd, apgdt, noise;
  then the steps (queries, tries); then options: -ce, -margin, -dlr (loss), -xN (starts),
  -tN (target classes), -eotN (gradients averaged against a random network), -atan:4 (surrogate)
  quick, standard, full, autoattack: the worst case of that audit
  example: fgsm,rfgsm,pgd20,pgd20-x5,apgd50-dlr,mtpgd40,square500,quick

The same command continues where an earlier one stopped; a cell is measured again if its network,
images or settings have changed."""


def parser() -> common.Parser:
    from spikeguard.cli.target import HELP

    made = common.Parser(
        "table",
        "Attack networks by several attacks at several budgets; a record, and the table as CSV, LaTeX, "
        "Markdown and a picture.",
        epilog=EPILOG,
    )
    made.add_argument("network", nargs="+", type=common.named, metavar="NETWORK", help=HELP)
    made.add_argument("--attacks", type=common.named, default="fgsm,pgd20,quick", help="columns, see below")
    made.add_argument("--eps", type=common.named, default="8/255", help="budgets, separated by commas")
    made.add_argument("--norm", default="linf", choices=["linf", "l2", "l1"], help="norm of the budgets")
    made.add_argument(
        "--images", type=common.positive, default=200, help="test images, balanced over the classes"
    )
    made.add_argument("--seed", type=common.seed, default=0, help="seed of all random draws")
    made.add_argument("--batch-size", type=common.positive, default=250, help="images per batch")
    common.add_data_options(made, of_user=True)
    made.add_argument(
        "--out", type=common.path, default="tables", metavar="FOLDER", help="folder of record and table"
    )
    return made


def run(arguments: list[str]) -> int:
    made = parser()
    given = made.read(arguments)
    eps = _budgets(made, given)
    common.start(given.threads)

    from spikeguard.runtime.stop import ctrl_c
    from spikeguard.tables.columns import columns
    from spikeguard.tables.files import write_table
    from spikeguard.tables.measure import Conditions, Watch
    from spikeguard.tables.run import RECORD_NAME, tabulate
    from spikeguard.tables.text import notes, rows
    from spikeguard.threat import THREATS

    if twice := [n for n in given.network if given.network.count(n) > 1]:
        made.error(f"{twice[0]} is named twice")
    threats = [THREATS[given.norm](e) for e in eps]
    conditions = Conditions(
        columns(given.attacks, given.norm), threats, Path(given.out), given.seed, given.batch_size
    )
    with progress() as shown, ctrl_c() as stop:
        record = tabulate(
            given.network, lambda name: _subject(name, given), conditions, Watch(shown.show, stop)
        )
    written = write_table(record, conditions.folder / RECORD_NAME)
    if given.json:
        common.print_json(record.to_json())
    else:
        common.table("accuracy under attack, %", *rows(record))
        for note in notes(record):
            common.say(note)
        names = ", ".join(path.suffix for path in written)
        common.say(f"wrote {conditions.folder / RECORD_NAME} and beside it {names}")
        common.say("next: spikeguard verify FILE, for the record of any cell under cells/")
    failed = any(cell.errors or cell.failed for row in record.rows for cell in row.cells)
    return 1 if failed else 0


def _budgets(made: common.Parser, given: argparse.Namespace) -> list[float]:
    """The budgets of ``--eps``; an error names the wrong one."""
    try:
        eps = [common.share_or_more(text.strip()) for text in given.eps.split(",") if text.strip()]
    except argparse.ArgumentTypeError as error:
        made.error(f"argument --eps: {error}")
    if not eps or len(set(eps)) < len(eps):
        made.error(f"argument --eps: {given.eps!r} must name each budget once, as in 2/255,8/255")
    for one in eps:
        common.check_budget(made, argparse.Namespace(norm=given.norm, eps=one))
    return eps


def _subject(name: str, given: argparse.Namespace) -> Subject:
    """The network of that name with its test images."""
    from spikeguard.cli.target import find
    from spikeguard.tables.measure import Subject

    found = find(name, given.images, given.data, given.data_dir, given.device, given.weights)
    return Subject(name, found.model, found.test, found.origin)
