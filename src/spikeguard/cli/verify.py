"""``spikeguard verify``: check records against the network they are about."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from spikeguard.cli import common
from spikeguard.cli.progress import progress
from spikeguard.cli.records import check_replaceable, record_file
from spikeguard.errors import UserError
from spikeguard.records.files import CHANGED, write_json

if TYPE_CHECKING:
    from spikeguard.records.base import Record


@dataclass(frozen=True)
class Row:
    """What was found in one record: stored inputs that hold, of all, and what is wrong."""

    record: str
    claimed: int
    held: int
    ok: bool
    wrong: tuple[str, ...]


def parser() -> common.Parser:
    made = common.Parser(
        "verify",
        "Check records: load network and images again, and test every stored witness by one forward pass.",
    )
    made.add_argument(
        "record", nargs="+", type=common.named, help="records of audits or attacks (files or folders)"
    )
    common.add_data_options(made)
    made.add_argument("--out", type=common.path, metavar="FILE", help="file for the result, as JSON")
    return made


def run(arguments: list[str]) -> int:
    given = parser().read(arguments)
    from spikeguard.records.read import read_to_verify

    records = [read_to_verify(record_file(name)) for name in given.record]
    if given.out:
        check_replaceable(given.out, lambda held: "verified" in held)
    common.start(given.threads)
    with progress() as shown:
        rows = []
        for number, (name, (record, intact)) in enumerate(zip(given.record, records, strict=True)):
            shown.show("verifying", number, len(records), f" {name}")
            row = _verify(name, record, given)
            rows.append(row if intact else replace(row, ok=False, wrong=(f"it {CHANGED}", *row.wrong)))
    result = {"verified": [asdict(row) for row in rows]}
    if given.out:
        write_json(given.out, result)
    if given.json:
        common.print_json(result)
    else:
        _show(rows, given)
    return 0 if all(row.ok for row in rows) else 1


def _verify(name: str, record: Record, given: argparse.Namespace) -> Row:
    from spikeguard.auditing.verify import checkable, verify
    from spikeguard.cli.target import find, found_from

    audit = checkable(record)
    origin = audit.origin
    if origin.target is None:
        raise UserError(f"{name} names no target: it was made from Python; verify it there with sg.verify")
    folder = record_file(name).parent
    at = origin.data, given.data_dir, given.device, origin.weights
    target = find(found_from(folder, origin), audit.images, *at)
    result = verify(audit, folder, target.model, target.test.pixels(), target.test.y)
    wrong = result.wrong
    if audit.index and audit.index != tuple(target.test.index.tolist()):
        wrong += ("the numbers of the images are not those that the data set gives them",)
    if origin.split not in (None, "test"):
        wrong += (f"the record names the part {origin.split!r} of the data; the command line attacks 'test'",)
    return Row(name, result.claimed, result.held, not wrong, wrong)


def _show(rows: list[Row], given: argparse.Namespace) -> None:
    for row in rows:
        found = "all hold" if row.ok else "; ".join(row.wrong)
        common.say(
            f"{row.record}: {row.held} of {row.claimed} stored inputs do to this network what "
            f"the record says: {found}"
        )
    if given.out:
        common.say(f"wrote {given.out}")
    if failed := [row.record for row in rows if not row.ok]:
        common.say(
            f"next: audit the network of {failed[0]} again; a record that does not hold is no evidence"
        )
    else:
        common.say(f"next: spikeguard export {' '.join(given.record)}")
