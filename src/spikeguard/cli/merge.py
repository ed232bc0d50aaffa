"""``spikeguard merge``: the union of audits."""

from __future__ import annotations

import os

from spikeguard.cli import common
from spikeguard.cli.records import check_replaceable, load_records, record_file


def parser() -> common.Parser:
    made = common.Parser(
        "merge",
        "The union of audits of the same network, images and threat: an image counts as broken where any of "
        "them broke it.",
    )
    made.add_argument("record", nargs="+", type=common.named, help="records of audits (files or folders)")
    made.add_argument("--out", type=common.path, metavar="FILE", help="file for the merged record (required)")
    return made


def run(arguments: list[str]) -> int:
    made = parser()
    given = made.read(arguments)
    if given.out is None or given.out.is_dir():
        made.error("merge writes a record: name the file with --out FILE.json")
    from spikeguard.auditing.merge import merge_files

    files = [record_file(name) for name in given.record]
    if os.path.realpath(given.out) in map(os.path.realpath, files):
        made.error(f"--out {given.out} is one of the records to merge: name another file")
    check_replaceable(given.out, lambda held: held.get("kind") == "audit")
    load_records(given.record)  # none of them may say two things of one image
    merged = merge_files(files, given.out)
    if given.json:
        common.print_json(merged.to_json())
        return 0
    common.say(f"{merged.verdict}\nwrote {given.out} and its witnesses\nnext: spikeguard verify {given.out}")
    return 0
