"""``spikeguard verify``: check records against the network they are about."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spikeguard.cli import common
from spikeguard.cli.records import load_records, record_file
from spikeguard.errors import UserError

if TYPE_CHECKING:
    from spikeguard.records.schema import Record


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
    made.add_argument("record", nargs="+", help="records of audits or attacks (files or folders)")
    common.add_data_options(made)
    made.add_argument("--out", type=Path, metavar="FILE", help="file for the result, as JSON")
    return made


def run(arguments: list[str]) -> int:
    given = parser().read(arguments)
    records = load_records(given.record)
    common.start(given.threads)
    with common.progress() as shown:
        rows = []
        for number, (name, record) in enumerate(zip(given.record, records, strict=True)):
            shown.show("verifying", number, len(records), f" {name}")
            rows.append(_verify(name, record, given))
    result = {"verified": [asdict(row) for row in rows]}
    if given.out:
        from spikeguard.records.files import write_json

        write_json(given.out, result)
    if given.json:
        common.print_json(result)
    else:
        _show(rows, given)
    return 0 if all(row.ok for row in rows) else 1


def _verify(name: str, record: Record, given: argparse.Namespace) -> Row:
    from spikeguard.auditing.verify import checkable, verify
    from spikeguard.cli.target import find

    audit = checkable(record)
    origin = audit.origin
    if origin.target is None:
        raise UserError(f"{name} names no target: it was made from Python; verify it there with sg.verify")
    target = find(origin.target, audit.images, origin.data, given.data_dir, given.device)
    result = verify(audit, record_file(name).parent, target.model, target.test.pixels(), target.test.y)
    return Row(name, result.claimed, result.held, not result.wrong, result.wrong)


def _show(rows: list[Row], given: argparse.Namespace) -> None:
    for row in rows:
        found = "all hold" if row.ok else "; ".join(row.wrong)
        print(
            common.printable(
                f"{row.record}: {row.held} of {row.claimed} stored inputs do to this network what "
                f"the record says: {found}"
            )
        )
    if given.out:
        print(f"wrote {given.out}")
    if failed := [row.record for row in rows if not row.ok]:
        print(f"next: audit the network of {failed[0]} again; a record that does not hold is no evidence")
    else:
        print(f"next: spikeguard export {' '.join(given.record)}")
