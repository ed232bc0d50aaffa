"""spikeguard audit"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from spikeguard.cli import common
from spikeguard.errors import UserError

EFFORT = "quick takes a minute, standard minutes, full hours; autoattack: that protocol alone, for comparison"
USUAL: list[Any] = [None, 0, [], 250, None]  # images, seed, networks to transfer from, batch size, data
LONGEST = 3600  # seconds for the check in a fresh process


def run(arguments: list[str]) -> int:
    parser = common.Parser(
        "audit",
        "Judge a network by the strongest attacks known, with checks that notice when an attack fails.",
    )
    parser.add_argument(
        "target",
        nargs="*",
        help="a run folder, a weights file or package.module:factory; with --verify and the like, records",
    )
    parser.add_argument(
        "--effort", default="quick", choices=["quick", "standard", "full", "autoattack"], help=EFFORT
    )
    parser.add_argument(
        "--eps",
        type=common.share_or_more,
        default=8 / 255,
        help="budget, images in [0, 1]; 8/255 may be written so",
    )
    parser.add_argument("--norm", default="linf", choices=["linf", "l2", "l1"], help="in which norm")
    parser.add_argument(
        "--images",
        type=common.positive,
        help="test images, balanced over the classes (default: 200, 1000, all)",
    )
    parser.add_argument(
        "--transfer",
        action="append",
        default=[],
        metavar="TARGET",
        help="another network whose gradients are tried; may be repeated",
    )
    parser.add_argument("--seed", type=int, default=USUAL[1], help="seed of all random draws")
    parser.add_argument("--batch-size", type=common.positive, default=USUAL[3], help="images a chunk")
    parser.add_argument("--data", help="data set of a package.module:factory (a run folder knows its own)")
    parser.add_argument(
        "--data-dir", help="folder of the data set (default: SPIKEGUARD_DATA, else the system's)"
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of record, witnesses and page (default: in TARGET/audits, by its settings)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with an interrupted audit, to the same result"
    )
    others = parser.add_mutually_exclusive_group()
    others.add_argument(
        "--verify",
        action="store_true",
        help="check records and their witnesses, one forward pass each; --out FILE keeps the answer",
    )
    others.add_argument(
        "--merge",
        action="store_true",
        help="union of records of the same model and images, written to --out FILE",
    )
    others.add_argument("--compare", action="store_true", help="paired test of two records")
    others.add_argument("--table", choices=["csv", "latex"], help="print records as a table")
    others.add_argument(
        "--methods", action="store_true", help="print a paragraph on the method, from a record"
    )
    given = parser.parse_args(arguments)
    if not given.target:
        parser.error("name what to audit: a run folder, a weights file or package.module:factory")
    if given.merge or given.compare or given.table or given.methods:
        return _records(given, parser)
    if given.verify:
        return _verify(given)
    if len(given.target) > 1:
        parser.error(
            f"one target at a time, got {len(given.target)} (--transfer names networks to attack through)"
        )
    return _audit(given)


def _audit(given: Any) -> int:
    common.start(given.threads)
    from spikeguard.auditing.audit import RECORD, STATE, audit
    from spikeguard.auditing.record import confirmed, save
    from spikeguard.auditing.suite import EFFORTS
    from spikeguard.cli.target import find
    from spikeguard.random.draws import key
    from spikeguard.records.files import write_json
    from spikeguard.report.audit_page import write_page
    from spikeguard.runtime.stop import ctrl_c
    from spikeguard.threat import THREATS

    name, threat = given.target[0], THREATS[given.norm](given.eps)
    target = find(name, given.images or EFFORTS[given.effort], given.data, given.data_dir, given.device)
    pool = [find(other, 10, given.data, given.data_dir, given.device).model for other in given.transfer]
    root = (
        Path(name)
        if Path(name).is_dir()
        else Path(name).parent
        if Path(name).is_file()
        else Path("audits") / name.replace(":", ".")
    )
    budget = f"{round(given.eps * 255, 3):g}of255" if given.norm == "linf" else f"{given.eps:g}"
    others = [given.images, given.seed, given.transfer, given.batch_size, given.data]
    which = (
        "" if others == USUAL else f"-{key(json.dumps(others)) % 16**6:06x}"
    )  # other settings, another folder
    out = given.out or root / "audits" / f"{given.effort}-{given.norm}-{budget}{which}"
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
            progress=shown.tell,
            index=target.test.index,
            stop=stop,
        )
    asked = {"data_dir": given.data_dir, "images": given.images or EFFORTS[given.effort]}
    record = save({**target.about, **done.record, "asked": asked}, done.witnesses, out / RECORD)
    checked = _in_fresh_process(out / RECORD, given)
    record = confirmed(record, checked)
    write_json(out / RECORD, record)
    pictures = write_page(record, x, y, done.witnesses, threat, out / "index.html")
    if given.json:
        common.print_json(record)
    else:
        _show(record, out, pictures)
    return 0 if done.reliable and checked["held"] else 1


def _in_fresh_process(path: Path, given: Any) -> dict[str, Any]:
    """What another process, which loads the model and the images anew, says of the record.

    That it fails is an answer, too.
    """
    from spikeguard.records.files import read_json

    with TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "spikeguard", "audit", "--verify", f"--out={answer}", str(path)]
        command += [
            f"--{k.replace('_', '-')}={v}"
            for k in ("data_dir", "device", "threads")
            if (v := getattr(given, k))
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
            (told,) = read_json(answer)["verified"]
        except subprocess.TimeoutExpired:
            return {
                "held": False,
                "witnesses": 0,
                "wrong": [f"no answer within {LONGEST} s: run spikeguard audit --verify {path}"],
            }
        except UserError:  # no answer: it ended before it had one
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            return {
                "held": False,
                "witnesses": 0,
                "wrong": [f"it ended with exit code {done.returncode}: {last}"],
            }
    return {"held": told["ok"], "witnesses": told["held"], "wrong": told["wrong"]}


def _show(record: dict[str, Any], out: Path, page: Path) -> None:
    rows = []
    for m in record["members"]:
        alone = f"{100 * m['alone']['accuracy']:.1f}" if "alone" in m else ""
        after = "" if m["after"] is None else f"{100 * m['after']:.1f}"
        rows.append(
            [
                m["name"],
                m["family"],
                str(m["met"]),
                str(m["first"]),
                str(m["only this family"]),
                alone,
                after,
                f"{m.get('seconds', 0):.1f}",
            ]
        )
    ((norm, eps),) = record["threat"].items()
    title = (
        f"{record['target']}, {record['images']} images, {norm} "
        f"{f'{255 * eps:.3g}/255' if norm == 'linf' else eps}"
    )
    common.table(
        title,
        ["attack", "family", "met", "broke first", "no other family", "alone, %", "after it, %", "s"],
        rows,
    )
    for f in record["flags"]:
        print(f"{f['level']}: {f['message']} (docs/flags/{f['id']}.md)")
    told = record["clean"]
    print(f"\nclean {100 * told['accuracy']:.1f} %; robust accuracy {record['verdict']}")
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
    print(f"next: spikeguard audit --verify {out / 'audit.json'}{longer.get(record['suite']['effort'], '')}")


def _load(paths: list[str]) -> list[dict[str, Any]]:
    from spikeguard.records.files import read_json

    return [read_json(Path(p) / "audit.json" if Path(p).is_dir() else Path(p)) for p in paths]


def _verify(given: Any) -> int:
    common.start(given.threads)
    from spikeguard.auditing.verify import checkable, verify
    from spikeguard.cli.target import find
    from spikeguard.records.files import write_json

    told = []
    for path, record in zip(given.target, _load(given.target), strict=True):
        checkable(record)
        if "target" not in record:
            raise UserError(
                f"{path} names no target: it was made from Python; use spikeguard.auditing.verify.verify "
                "there"
            )
        target = find(
            record["target"], len(record["first"]), record.get("data"), given.data_dir, given.device
        )
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        result = verify(record, folder, target.model, target.test.pixels(), target.test.y)
        told.append(
            {
                "record": path,
                "claimed": result.claimed,
                "held": result.held,
                "ok": not result.wrong,
                "wrong": list(result.wrong),
            }
        )
    if given.out:
        write_json(given.out, {"verified": told})
    if given.json:
        common.print_json({"verified": told})
    else:
        for row in told:
            said = "all hold" if row["ok"] else "; ".join(row["wrong"])
            print(
                f"{row['record']}: {row['held']} of {row['claimed']} stored inputs do to this model what "
                f"the record says: {said}"
            )
    return 0 if all(row["ok"] for row in told) else 1


def _records(given: Any, parser: common.Parser) -> int:
    from spikeguard.auditing import compare
    from spikeguard.records.files import write_json

    if given.merge and (given.out is None or given.out.is_dir()):
        parser.error("--merge writes a record: name the file with --out FILE.json")
    records = _load(given.target)
    if given.merge:
        merged = compare.merge(records)
        write_json(given.out, merged)
        print(f"{merged['verdict']}\nwrote {given.out}")
    elif given.compare:
        if len(records) != 2:
            parser.error(f"--compare takes two records, got {len(records)}")
        told = compare.compare(*records)
        if given.json:
            common.print_json(told)
        else:
            print(f"{given.target[0]} against {given.target[1]}: {told['says']}")
    elif given.table:
        print(compare.as_csv(records) if given.table == "csv" else compare.as_latex(records), end="")
    else:
        print("\n\n".join(compare.methods(r) for r in records))
    return 0
