"""``spikeguard audit``: judge a network by the strongest attacks known."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from spikeguard.cli import common
from spikeguard.errors import UserError

DEFAULT_EFFORT = "standard"  # as that of spikeguard.audit
USUAL: list[Any] = [None, 0, [], 250, None]  # images, seed, networks to transfer from, batch size, data
LONGEST = 3600  # seconds for the check in a fresh process
OLD_MODES = {"--verify": "verify", "--merge": "merge", "--compare": "compare"}
"""Modes of ``audit`` in 0.1 that are verbs now."""


def parser() -> common.Parser:
    from spikeguard.cli.target import HELP

    made = common.Parser(
        "audit",
        "Judge a network by the strongest attacks known, with checks that notice when an attack fails.",
    )
    made.add_argument("target", nargs="*", help=HELP)
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
    made.add_argument("--seed", type=int, default=USUAL[1], help="seed of all random draws")
    made.add_argument("--batch-size", type=common.positive, default=USUAL[3], help="images per batch")
    common.add_data_options(made, of_user=True)
    made.add_argument(
        "--out",
        type=Path,
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
    from spikeguard.auditing.record import confirmed, save
    from spikeguard.auditing.suite import EFFORTS
    from spikeguard.cli.target import find
    from spikeguard.records.files import write_json
    from spikeguard.report.audit_page import write_page
    from spikeguard.runtime.stop import ctrl_c
    from spikeguard.threat import THREATS

    threat = THREATS[given.norm](given.eps)
    target = find(name, given.images or EFFORTS[given.effort], given.data, given.data_dir, given.device)
    pool = [find(other, 10, given.data, given.data_dir, given.device).model for other in given.transfer]
    out = given.out or _default_folder(given, name)
    if (out / STATE).exists() and not given.resume:
        raise UserError(
            f"{out} holds an interrupted audit: go on with --resume, or name another folder with --out"
        )
    x, y = target.test.pixels(), target.test.y
    with common.progress() as shown, ctrl_c() as stop:
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
        )
    origin = {"data_dir": given.data_dir, "images": given.images or EFFORTS[given.effort]}
    record = save({**target.about, **done.record, "asked": origin}, done.witnesses, out / RECORD)
    checked = _in_fresh_process(out / RECORD, given)
    record = confirmed(record, checked)
    write_json(out / RECORD, record)
    pictures = write_page(record, x, y, done.witnesses, threat, out / "index.html")
    if given.json:
        common.print_json(record)
    else:
        _show(record, out, pictures)
    return 0 if done.reliable and checked["held"] else 1


def _default_folder(given: argparse.Namespace, name: str) -> Path:
    """The folder of an audit: other settings, another folder."""
    from spikeguard.cli.target import folder_of
    from spikeguard.random.draws import key

    size = common.budget(given.norm, given.eps).replace("/", "of")
    others = [given.images, given.seed, given.transfer, given.batch_size, given.data]
    which = "" if others == USUAL else f"-{key(json.dumps(others)) % 16**6:06x}"
    return folder_of(name) / "audits" / f"{given.effort}-{given.norm}-{size}{which}"


def _in_fresh_process(path: Path, given: argparse.Namespace) -> dict[str, Any]:
    """What another process, which loads the model and the images again, says of the record.

    That it fails is an answer, too.
    """
    from spikeguard.records.files import read_json

    def failed(reason: str) -> dict[str, Any]:
        return {"held": False, "witnesses": 0, "wrong": [reason]}

    with TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-P", "-m", "spikeguard", "verify", f"--out={answer}", str(path)]
        command += [
            f"--{k.replace('_', '-')}={v}"
            for k in ("data_dir", "device", "threads")
            if (v := getattr(given, k))
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
            (row,) = read_json(answer)["verified"]
        except subprocess.TimeoutExpired:
            return failed(f"no answer within {LONGEST} s: run spikeguard verify {path}")
        except UserError:  # no answer: it ended before it had one
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            return failed(f"it ended with exit code {done.returncode}: {last}")
    return {"held": row["ok"], "witnesses": row["held"], "wrong": row["wrong"]}


def _show(record: dict[str, Any], out: Path, page: Path) -> None:
    ((norm, eps),) = record["threat"].items()
    common.table(
        f"{record['target']}, {record['images']} images, {norm} {common.budget(norm, eps)}",
        ["attack", "family", "met", "broke first", "no other family", "alone, %", "after it, %", "s"],
        [_row(member) for member in record["members"]],
    )
    common.print_flags(record["flags"])
    clean = record["clean"]
    print(f"\nclean {100 * clean['accuracy']:.1f} %; robust accuracy {record['verdict']}")
    checked = record["verified_in_fresh_process"]
    what = "inputs rescored" if record["random_model"] else "witnesses checked"
    print(
        f"{checked['witnesses']} {what} in a fresh process: "
        f"{'they all hold' if checked['held'] else '; '.join(checked['wrong'])}"
    )
    print(f"wrote {page} (open it in a browser), {out / 'audit.json'} and its witnesses")
    longer = {
        "quick": ", or --effort standard for a number to publish",
        "standard": ", or --effort full for the last word",
    }
    print(f"next: spikeguard verify {out / 'audit.json'}{longer.get(record['suite']['effort'], '')}")


def _row(member: dict[str, Any]) -> list[str]:
    return [
        member["name"],
        member["family"],
        str(member["met"]),
        str(member["first"]),
        str(member["only this family"]),
        f"{100 * member['alone']['accuracy']:.1f}" if "alone" in member else "",
        "" if member["after"] is None else f"{100 * member['after']:.1f}",
        f"{member.get('seconds', 0):.1f}",
    ]
