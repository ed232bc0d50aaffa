"""``spikeguard reproduce``: the paper's experiments, or a network of a record, measured again."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from spikeguard.cli import common
from spikeguard.cli.progress import progress

if TYPE_CHECKING:
    from spikeguard.records.reproduction import AgreementRecord, ReproductionRecord

log = logging.getLogger("spikeguard")
EXPERIMENTS = ("table1", "ablation", "advanced")
SCALES = ("mini", "cpu", "paper")
EPILOG = """experiments: table1 (CIFAR-10: BPTT, AT and RAT with and without TGO), ablation (CIFAR-100:
  the parts of TGO), advanced (CIFAR-100: MTPGD, APGD, EOT)
scales: mini (the embedded images, minutes), cpu (a compact network on all of CIFAR, at most 40 minutes
  of two cores a network), paper (the full networks; a GPU)

A RECORD is trained and measured again from the recipe that it holds: a training, an attack, an audit,
or, with --cell, a network of a table, sweep, demo, CIFAR cell or reproduction. Exit code 1: it differs.
'spikeguard verify' checks the network that a record is about; this makes the network again."""


def parser() -> common.Parser:
    made = common.Parser(
        "reproduce",
        "Repeat an experiment of the paper on TGO, or train and measure the network of a record again. The "
        "same command continues where an earlier one stopped.",
        epilog=EPILOG,
    )
    made.add_argument(
        "what", type=common.named, metavar="EXPERIMENT|RECORD", help=f"{', '.join(EXPERIMENTS)}, or a record"
    )
    made.add_argument("--scale", choices=SCALES, help="size of an experiment (default: mini)")
    made.add_argument(
        "--rows", type=common.named, help="rows of an experiment, separated by commas (default: all)"
    )
    made.add_argument("--cell", type=common.named, help="which network of a record")
    made.add_argument(
        "--seeds",
        type=common.up_to(100),
        default=1,
        help="trainings of each network; several say how much a seed alone changes",
    )
    made.add_argument(
        "--data-dir", type=common.named, help="folder of the data set (default: SPIKEGUARD_DATA)"
    )
    made.add_argument("--device", type=common.named, help="cpu or cuda (default: cuda where there is one)")
    made.add_argument(
        "--out",
        type=common.path,
        metavar="FOLDER",
        help="folder of networks, record and page (default: reproduced/WHAT)",
    )
    return made


def run(arguments: list[str]) -> int:
    made = parser()
    given = made.read(arguments)
    if given.what in EXPERIMENTS:
        if given.cell is not None:
            made.error("--cell is for a record; rows of an experiment are named by --rows")
        return _experiment(given)
    if given.scale is not None or given.rows is not None:
        made.error(f"--scale and --rows are for {', '.join(EXPERIMENTS)}, not for a record")
    if not Path(given.what).exists():
        from spikeguard.errors import unknown

        raise unknown("experiment", given.what, EXPERIMENTS, "reproduce: ", more="; or the path of a record")
    return _record(given)


def _experiment(given: argparse.Namespace) -> int:
    common.start(given.threads)
    from spikeguard.data.sources import load_data
    from spikeguard.errors import Interrupted
    from spikeguard.records.reproduction import ReproductionRecord
    from spikeguard.reproduce.page import write_pages
    from spikeguard.reproduce.paper import paper
    from spikeguard.reproduce.run import RECORD_NAME, Plan, planned, reproduce
    from spikeguard.runtime.stop import ctrl_c
    from spikeguard.tables.measure import Watch
    from spikeguard.training.builder import pick_device

    scale = given.scale or "mini"
    out = given.out or Path("reproduced") / f"{given.what}-{scale}"
    rows = tuple(name.strip() for name in (given.rows or "").split(",") if name.strip())
    plan = Plan(given.what, scale, tuple(range(given.seeds)), rows)
    data = load_data(planned(paper(), plan)[0].recipe.data, given.data_dir)
    if scale == "paper" and pick_device(given.device).type == "cpu":
        log.warning("scale paper is meant for a GPU: on this machine a network takes days or weeks")
    try:
        with progress() as shown, ctrl_c() as stop:
            record = reproduce(
                paper(),
                plan,
                out,
                data,
                device=given.device,
                data_dir=given.data_dir,
                watch=Watch(shown.show, stop),
            )
    except Interrupted:
        if (out / RECORD_NAME).is_file():  # a page of what is finished
            write_pages(ReproductionRecord.read(out / RECORD_NAME), paper(), out)
        raise
    pages = write_pages(record, paper(), out)
    if given.json:
        common.print_json(record.to_json())
    else:
        _show(record, pages[0], out / RECORD_NAME)
    return 1 if any(row.failed for row in record.rows) else 0


def _show(record: ReproductionRecord, page: Path, file: Path) -> None:
    from spikeguard.reproduce.page import not_reproduced, notes, reading, table
    from spikeguard.reproduce.paper import paper

    common.table(
        f"{paper().experiment(record.experiment).title}: paper / ours, accuracy in %", *table(record, paper())
    )
    for text in (*notes(record, paper()), *reading(record, paper()), *not_reproduced(record, paper())):
        common.say(text)
    common.say(f"wrote {page} (open it in a browser), {file}, table.csv, table.tex, table.md")
    common.say(f"next: spikeguard reproduce {file} --cell NAME, for a row once more")


def _record(given: argparse.Namespace) -> int:
    common.start(given.threads)
    from spikeguard.cli.records import record_file
    from spikeguard.reproduce.again import Again, reproduce_record
    from spikeguard.runtime.stop import ctrl_c
    from spikeguard.tables.measure import Watch

    path = record_file(given.what)
    again = Again(given.seeds, given.out, given.data_dir, given.device)
    with progress() as shown, ctrl_c() as stop:
        found, file = reproduce_record(path, given.cell, again, Watch(shown.show, stop))
    if given.json:
        common.print_json(found.to_json())
    else:
        _show_agreement(found, file)
    return 0 if found.agrees else 1


def _show_agreement(found: AgreementRecord, file: Path) -> None:
    from spikeguard.reproduce.again import rows, verdict

    common.table(f"{found.record}: {found.cell}, measured again", *rows(found))
    common.say(verdict(found))
    common.say(f"wrote {file}")
