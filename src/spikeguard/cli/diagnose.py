"""``spikeguard diagnose``: why a network is fragile."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from spikeguard.cli import common
from spikeguard.cli.progress import progress

if TYPE_CHECKING:
    from spikeguard.records.diagnosis import DiagnosisRecord
    from spikeguard.threat import Threat

RECORD, PAGE = "diagnosis.json", "diagnosis.html"


def parser() -> common.Parser:
    from spikeguard.cli.target import HELP

    made = common.Parser(
        "diagnose",
        "Why a network is fragile: where its potentials lie, which spikes an attack flips, and whether "
        "holding them saves it. With OTHER: two networks side by side.",
    )
    made.add_argument("target", type=common.named, help=HELP)
    made.add_argument("other", nargs="?", type=common.named, help="a network to compare it with")
    common.add_budget(made)
    made.add_argument(
        "--images", type=common.positive, default=100, help="test images, balanced over classes"
    )
    made.add_argument(
        "--sigma", type=common.share_or_more, default=0.1, help="noise in the comparator, standard deviation"
    )
    made.add_argument("--seed", type=common.seed, default=0, help="seed of all random draws")
    made.add_argument("--batch-size", type=common.positive, default=50, help="images per batch")
    common.add_data_options(made, of_user=True)
    made.add_argument(
        "--out", type=common.path, metavar="FOLDER", help="folder of record and page (default: beside TARGET)"
    )
    return made


def run(arguments: list[str]) -> int:
    made = parser()
    given = made.read(arguments)
    common.check_budget(made, given)
    if not given.sigma:
        made.error("argument --sigma: '0' must be above 0")
    common.start(given.threads)
    from spikeguard.cli.records import check_replaceable
    from spikeguard.cli.target import folder_of
    from spikeguard.report.diagnosis_page import write_page
    from spikeguard.threat import THREATS

    threat = THREATS[given.norm](given.eps)
    names = [given.target] if given.other is None else [given.target, given.other]
    out: Path = given.out or folder_of(given.target) / "diagnosis"
    files = [out / (RECORD if not k else f"other-{RECORD}") for k in range(len(names))]
    for file in files:
        check_replaceable(file, lambda held: held.get("kind") == "diagnosis")
    records = []
    for name, file in zip(names, files, strict=True):
        records.append(_diagnose(name, threat, given))
        records[-1].write(file)
    page = write_page(records, out / PAGE)
    if given.json:
        common.print_json({"records": [record.to_json() for record in records]})
        return 0
    for record in records:
        _show(record)
    common.say(f"wrote {out} ({', '.join([*(f.name for f in files), page.name])})")
    common.say(f"next: open {page}")
    return 0


def _diagnose(name: str, threat: Threat, given: argparse.Namespace) -> DiagnosisRecord:
    """The record of one network."""
    from spikeguard.cli.target import find
    from spikeguard.diagnosis.diagnose import diagnose

    target = find(name, given.images, given.data, given.data_dir, given.device, given.weights)
    with progress() as shown:
        return diagnose(
            target.model,
            target.test.pixels(),
            target.test.y,
            threat,
            sigma=given.sigma,
            seed=given.seed,
            batch_size=given.batch_size,
            progress=lambda stage, done, total: shown.show(stage, done, total, f" {name}"),
            origin=target.origin,
        ).record


def _show(record: DiagnosisRecord) -> None:
    """A table by layer, and what it means."""
    from spikeguard.report.diagnosis_page import LAYER_HEADER, findings, layer_cells

    name = record.origin.target or "the network"
    clean, attacked = (f"{100 * a.value:.1f} %" for a in (record.clean, record.attacked))
    title = f"{name}: {clean} clean, {attacked} under {record.attack}, {record.images} images"
    common.table(title, LAYER_HEADER, [layer_cells(layer, row) for layer, row in record.layers.items()])
    for line in findings(record):
        common.say(f"- {line}")
