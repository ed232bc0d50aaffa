"""``spikeguard compare``: a paired test of two audits."""

from __future__ import annotations

from dataclasses import asdict

from spikeguard.cli import common
from spikeguard.cli.records import check_replaceable, load_records


def parser() -> common.Parser:
    made = common.Parser(
        "compare",
        "A paired test of two audits on the same images under the same threat and suite: the difference of "
        "their robust accuracies with a 95 % interval.",
    )
    made.add_argument("first", type=common.named, help="record of an audit (file or folder)")
    made.add_argument("second", type=common.named, help="record to compare it with")
    made.add_argument("--out", type=common.path, metavar="FILE", help="file for the result, as JSON")
    return made


def run(arguments: list[str]) -> int:
    given = parser().read(arguments)
    from spikeguard.auditing.compare import compare
    from spikeguard.records.files import write_json

    if given.out:
        check_replaceable(given.out, lambda held: "says" in held)
    first, second = load_records([given.first, given.second])
    result = compare(first, second)
    if given.out:
        write_json(given.out, asdict(result))
    if given.json:
        common.print_json(asdict(result))
        return 0
    common.say(f"{given.first} against {given.second}: {result.says}")
    if given.out:
        common.say(f"wrote {given.out}")
    common.say(f"next: spikeguard export {given.first} {given.second} --format latex")
    return 0
