"""Mutations of the package that the tests must notice: ``python tools/mutate.py [--only NAME]``.

Each mutation of ``tests/mutations.toml`` is applied to a copy of the working tree, never to the tree itself,
and the tests named there run on the copy. A mutation is killed if one of them fails. Exit status 1 if any
survives.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("src", "tests", "tools", "results", "studies", "docs", "pyproject.toml", "README.md")
SOURCES = {".py", ".cpp"}
FAILED = 1  # pytest's exit status when tests ran and some failed; any other is no verdict


@dataclass(frozen=True)
class Mutation:
    """``before`` stands exactly once in the package; one of ``tests`` fails with ``after`` in its place."""

    name: str
    before: str
    after: str
    tests: tuple[str, ...]


def read(path: Path) -> list[Mutation]:
    """The mutations of a TOML file."""
    rows = tomllib.loads(path.read_text())["mutation"]
    found = [Mutation(r["name"], r["before"], r["after"], tuple(r["tests"])) for r in rows]
    if len({m.name for m in found}) < len(found):
        raise SystemExit(f"{path}: two mutations of one name")
    return found


def pattern(snippet: str) -> re.Pattern[str]:
    """Matches the snippet in any layout: white space may be any other, line breaks included."""
    return re.compile(r"\s+".join(re.escape(word) for word in snippet.split()))


def place(root: Path, mutation: Mutation) -> tuple[Path, re.Match[str]]:
    """The one file and place of a mutation; SystemExit unless there is exactly one."""
    files = [path for path in sorted((root / "src").rglob("*")) if path.suffix in SOURCES]
    found = [(f, m) for f in files for m in pattern(mutation.before).finditer(f.read_text())]
    if len(found) != 1:
        places = ", ".join(str(f.relative_to(root)) for f, _ in found) or "nowhere"
        raise SystemExit(f"{mutation.name}: {mutation.before!r} must stand once in src/, stands in: {places}")
    return found[0]


def node_ids(root: Path, mutation: Mutation) -> list[str]:
    """Test ids of the functions named; SystemExit unless each is defined in exactly one file."""
    ids = []
    for test in mutation.tests:
        name, bracket, parameters = test.partition("[")
        defined = re.compile(rf"^(?:async )?def {name}\(", re.MULTILINE)
        files = [f for f in sorted((root / "tests").rglob("test_*.py")) if defined.search(f.read_text())]
        if len(files) != 1:
            raise SystemExit(f"{mutation.name}: test {name} must be defined in one file, not {len(files)}")
        ids.append(f"{files[0].relative_to(root)}::{name}{bracket}{parameters}")
    return ids


def run_tests(root: Path, ids: list[str], timeout: float) -> tuple[int, str]:
    """Exit status and output of pytest on a copy."""
    path = os.pathsep.join(filter(None, (str(root / "src"), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", *ids]
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env=environment,
            timeout=timeout,
            text=True,
            stdout=-1,
            stderr=subprocess.STDOUT,
        )
    except subprocess.TimeoutExpired:
        return -1, f"no end after {timeout:.0f} s"
    return done.returncode, done.stdout


def survives(root: Path, mutation: Mutation, timeout: float) -> bool:
    """Apply one mutation to the copy, run its tests, undo it; SystemExit if the tests did not run."""
    path, match = place(root, mutation)
    text = path.read_text()
    line = text.count("\n", 0, match.start()) + 1
    path.write_text(text[: match.start()] + mutation.after + text[match.end() :])
    begun = time.monotonic()
    try:
        status, output = run_tests(root, node_ids(root, mutation), timeout)
    finally:
        path.write_text(text)
    if status not in (0, FAILED):
        raise SystemExit(f"{mutation.name}: the tests did not run (status {status})\n{output}")
    verdict = "SURVIVED" if status == 0 else "killed"
    where = f"{path.relative_to(root)}:{line}"
    print(f"{verdict:8}  {mutation.name:34} {where:46} {time.monotonic() - begun:5.1f} s", flush=True)
    return status == 0


def copy_tree(target: Path) -> None:
    """What tests need of the working tree."""
    unneeded = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=unneeded)
        elif source.exists():
            shutil.copy(source, target / name)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="this mutation (may be given again)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for the tests of one mutation")
    parser.add_argument("--check", action="store_true", help="find every place and test, run nothing")
    given = parser.parse_args(arguments)
    mutations = read(ROOT / "tests" / "mutations.toml")
    if unknown := set(given.only or ()) - {m.name for m in mutations}:
        parser.error(f"unknown mutation {unknown.pop()!r} (known: {', '.join(m.name for m in mutations)})")
    chosen = [m for m in mutations if not given.only or m.name in given.only]
    for mutation in chosen:
        place(ROOT, mutation)
        node_ids(ROOT, mutation)
    if given.check:
        return 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        root = Path(folder)
        copy_tree(root)
        every = list(dict.fromkeys(i for m in chosen for i in node_ids(root, m)))
        status, output = run_tests(root, every, given.timeout * 2)
        if status != 0:
            print(f"the tests fail without any mutation\n{output}")
            return 1
        alive = [m.name for m in chosen if survives(root, m, given.timeout)]
    print(
        f"{len(chosen) - len(alive)} of {len(chosen)} killed"
        + (f"; survived: {', '.join(alive)}" if alive else "")
    )
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
