"""``spikeguard compare``: a paired test of two audits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from spikeguard.cli import common
from spikeguard.cli.records import load_records


def parser() -> common.Parser:
    made = common.Parser(
        "compare",
        "A paired test of two audits on the same images under the same threat and suite: the difference of "
        "their robust accuracies with a 95 % interval.",
    )
    made.add_argument("first", help="record of an audit (file or folder)")
    made.add_argument("second", help="record to compare it with")
    made.add_argument("--out", type=Path, metavar="FILE", help="file for the result, as JSON")
    return made


def run(arguments: list[str]) -> int:
    given = parser().read(arguments)
    from spikeguard.auditing.compare import compare
    from spikeguard.records.files import write_json

    first, second = load_records([given.first, given.second])
    result = compare(first, second)
    if given.out:
        write_json(given.out, asdict(result))
    if given.json:
        common.print_json(asdict(result))
        return 0
    print(common.printable(f"{given.first} against {given.second}: {result.says}"))
    if given.out:
        print(f"wrote {given.out}")
    print(f"next: spikeguard export {given.first} {given.second} --format latex")
    return 0
