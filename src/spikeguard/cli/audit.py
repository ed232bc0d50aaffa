"""``spikeguard audit``: judge a network by the strongest attacks known."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spikeguard.cli import common
from spikeguard.cli.progress import progress
from spikeguard.errors import UserError
from spikeguard.stats import COVERS

if TYPE_CHECKING:
    from spikeguard.records.schema import AuditRecord, MemberRow

DEFAULT_EFFORT = "standard"  # as that of spikeguard.audit
USUAL: list[object] = [None, 0, [], 250, None]  # images, seed, networks to transfer from, batch size, data
OLD_MODES = {"--verify": "verify", "--merge": "merge", "--compare": "compare"}
"""Modes of ``audit`` in 0.1 that are verbs now."""


def parser() -> common.Parser:
    from spikeguard.cli.target import HELP

    made = common.Parser(
        "audit",
        "Judge a network by the strongest attacks known, with checks that notice when an attack fails.",
    )
    made.add_argument("target", nargs="*", type=common.named, help=HELP)
    made.add_argument(
        "--effort",
        default=DEFAULT_EFFORT,
        choices=["quick", "standard", "full", "autoattack"],
        help="quick takes a minute, standard minutes, full hours; autoattack: that protocol alone, for "
        "comparison",
    )
    common.add_budget(made)
    made.add_argument(
        "--images",
        type=common.positive,
        help="test images, balanced over the classes (default: 200 for quick, 1000 for standard, else all)",
    )
    made.add_argument(
        "--transfer",
        action="append",
        default=[],
        metavar="TARGET",
        help="another network whose gradients are tried; may be repeated",
    )
    made.add_argument("--seed", type=common.seed, default=USUAL[1], help="seed of all random draws")
    made.add_argument("--batch-size", type=common.positive, default=USUAL[3], help="images per batch")
    common.add_data_options(made, of_user=True)
    made.add_argument(
        "--out",
        type=common.path,
        metavar="FOLDER",
        help="folder of record, witnesses and page (default: in TARGET/audits, by its settings)",
    )
    made.add_argument(
        "--resume", action="store_true", help="go on with an interrupted audit, to the same result"
    )
    return made


def run(arguments: list[str]) -> int:
    if (code := _old_mode(arguments)) is not None:
        return code
    made = parser()
    given = made.read(arguments)
    if not given.target:
        made.error("name what to audit: a run folder, a weights file or package.module:factory")
    if len(given.target) > 1:
        made.error(
            f"one target at a time, got {len(given.target)} (--transfer names networks to transfer from)"
        )
    common.check_budget(made, given)
    return _audit(given, given.target[0])


def _old_mode(arguments: list[str]) -> int | None:
    """Run a mode of 0.1, such as ``audit --verify``, by its own verb; None if there is none."""
    from importlib import import_module

    rest = list(arguments)
    verb, old = next(((OLD_MODES[a], a) for a in rest if a in OLD_MODES), ("", ""))
    if verb:
        rest.remove(old)
    elif "--methods" in rest:
        verb, old = "export", "--methods"
        rest[rest.index(old) : rest.index(old) + 1] = ["--format", "methods"]
    elif table := next((a for a in rest if a.partition("=")[0] == "--table"), None):
        verb, old = "export", "--table"
        rest[rest.index(table) : rest.index(table) + 1] = table.replace("--table", "--format").split("=")
    else:
        return None
    print(
        f"spikeguard: 'audit {old}' is now 'spikeguard {verb}'; the old form ends with version 0.3",
        file=sys.stderr,
    )
    code: int = import_module(f"spikeguard.cli.{verb}").run(rest)
    return code


def _audit(given: argparse.Namespace, name: str) -> int:
    common.start(given.threads)
    from spikeguard.auditing.audit import RECORD, STATE, audit
    from spikeguard.auditing.record import seen_from
    from spikeguard.auditing.suite import EFFORTS
    from spikeguard.cli.target import find
    from spikeguard.report.audit_page import write_page
    from spikeguard.runtime.stop import ctrl_c
    from spikeguard.threat import THREATS

    threat = THREATS[given.norm](given.eps)
    target = find(
        name, given.images or EFFORTS[given.effort], given.data, given.data_dir, given.device, given.weights
    )
    pool = [find(other, 10, given.data, given.data_dir, given.device).model for other in given.transfer]
    out = given.out or _default_folder(given, name)
    if (out / STATE).exists() and not given.resume:
        raise UserError(
            f"{out} holds an interrupted audit: go on with --resume, or name another folder with --out"
        )
    x, y = target.test.pixels(), target.test.y
    with progress() as shown, ctrl_c() as stop:
        done = audit(
            target.model,
            x,
            y,
            threat,
            effort=given.effort,
            seed=given.seed,
            batch_size=given.batch_size,
            out=out,
            extra=pool,
            progress=shown.show,
            index=target.test.index,
            stop=stop,
            origin=seen_from(out, target.origin),
        )
    page = write_page(done.record, x, y, done.witnesses, threat, out / "index.html")
    if given.json:
        common.print_json(done.record.to_json())
    else:
        _show(done.record, out / RECORD, page)
    return 0 if done.reliable else 1


def _default_folder(given: argparse.Namespace, name: str) -> Path:
    """The folder of an audit: other settings, another folder."""
    from spikeguard.cli.target import folder_of
    from spikeguard.random.draws import key

    size = common.budget(given.norm, given.eps).replace("/", "of")
    others = [given.images, given.seed, given.transfer, given.batch_size, given.data]
    others += common.own_files(given, name)
    which = "" if others == USUAL else f"-{key(json.dumps(others)) % 16**6:06x}"
    return folder_of(name) / "audits" / f"{given.effort}-{given.norm}-{size}{which}"


def _show(record: AuditRecord, file: Path, page: Path) -> None:
    eps = record.threat.eps
    size = "one budget for each image" if isinstance(eps, tuple) else common.budget(record.threat.norm, eps)
    common.table(
        f"{record.origin.target}, {record.images} images, {record.threat.norm} {size}",
        ["attack", "family", "attempted", "first", "only this family", "alone, %", "after it, %", "s"],
        [_row(member) for member in record.members],
    )
    for line in failures(record):
        common.say(line)
    common.print_flags(record.flags)
    common.say(f"\nclean {100 * record.clean.value:.1f} %; robust accuracy {record.verdict}")
    common.say(f"in brackets: 95 % interval, which covers {COVERS}")
    if (check := record.fresh_process) is not None:
        what = "inputs scored again" if record.random_model else "witnesses checked"
        found = "they all hold" if check.held else "; ".join(check.wrong)
        common.say(f"{check.witnesses} {what} in a fresh process: {found}")
    common.say(f"wrote {page} (open it in a browser), {file} and its witnesses")
    longer = {
        "quick": ", or --effort standard for a number to publish",
        "standard": ", or --effort full for the last word",
    }
    common.say(f"next: spikeguard verify {file}{longer.get(record.suite.effort, '')}")


def failures(record: AuditRecord) -> list[str]:
    """A line for each member that failed, with its reason."""
    return [f"failed: {m.title}: {m.failed}" for m in record.members if m.failed]


def _row(member: MemberRow) -> list[str]:
    return [
        member.title,
        member.family,
        str(member.attempted),
        str(member.first_by),
        str(member.only_this_family),
        "" if member.alone is None else f"{100 * member.alone.value:.1f}",
        "" if member.after is None else f"{100 * member.after:.1f}",
        f"{member.seconds:.1f}",
    ]
