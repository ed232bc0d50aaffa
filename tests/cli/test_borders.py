"""Between the command line and what it runs: names, errors, targets of records, the fresh process."""

import ast
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import spikeguard
from spikeguard.auditing import fresh_process
from spikeguard.auditing.record import seen_from
from spikeguard.cli import common
from spikeguard.cli import main as program
from spikeguard.cli.main import main
from spikeguard.cli.records import check_replaceable
from spikeguard.cli.target import found_from
from spikeguard.errors import UserError
from spikeguard.records.schema import Origin
from spikeguard.runtime import picture as pictures

CLI = Path(spikeguard.__file__).parent / "cli"
PRINTS = {"common.py", "main.py", "completion.py"}
"""These print fixed texts, JSON in ASCII, a shell's script, or define ``say``."""


def test_every_verb_prints_by_the_one_function_that_obeys_no_name() -> None:
    found = [
        f"{path.name}:{node.lineno}"
        for path in CLI.glob("*.py")
        if path.name not in PRINTS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if not any(keyword.arg == "file" for keyword in node.keywords)
    ]
    assert not found


def test_a_name_is_never_a_formula_of_matplotlib() -> None:
    picture, axes = pictures.figure(2, 2)
    axes[0][0].set_title("$\\frac{$ \x1b[31m")
    axes[0][0].set_yticks([0, 1], ["$x^{$", "b"])
    svg = pictures.svg(picture)
    assert "$\\frac{$ \\x1b[31m" in svg
    assert "$x^{$" in svg
    assert "\x1b" not in svg


def test_what_is_logged_is_one_line_without_escape_codes() -> None:
    record = logging.LogRecord("spikeguard", logging.INFO, "", 0, "epoch of %s", ("a\x1b[2J\nb",), None)
    assert common._OneLine("spikeguard: %(message)s").format(record) == "spikeguard: epoch of a\\x1b[2J\\nb"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
        (RuntimeError("std::bad_alloc"), "not enough memory"),
        (RecursionError(), "nested too deeply"),
        (OSError(36, "File name too long", "aaa"), "train: aaa File name too long"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr(program, "import_module", lambda name: type("verb", (), {"run": staticmethod(run)}))
    assert main(["train"]) == 2
    assert said in capsys.readouterr().err


def test_a_fault_of_the_program_itself_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: list[str]) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(program, "import_module", lambda name: type("verb", (), {"run": staticmethod(run)}))
    with pytest.raises(RuntimeError, match="a fault"):
        main(["train"])


def test_the_target_of_a_record_is_found_from_the_records_own_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "a" / "audits" / "q").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "weights.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    origin = seen_from(Path("runs/a/audits/q"), Origin(target="runs/a"))
    assert (origin.target, origin.beside) == ("runs/a", "../..")
    moved = (tmp_path / "runs").rename(tmp_path / "elsewhere")
    monkeypatch.chdir("/")
    assert Path(found_from(moved / "a" / "audits" / "q", origin)).resolve() == moved / "a"
    assert found_from(tmp_path, origin) == "runs/a"
    factory = Origin(target="nets:make")
    assert seen_from(tmp_path, factory) == factory


def test_nothing_in_the_current_folder_is_imported_by_the_fresh_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("types", "torch", "json", "spikeguard_sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('executed')")
    (tmp_path / "lib").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", str(tmp_path), "lib"]))
    environment = fresh_process._isolated()
    assert environment["PYTHONPATH"] == str((tmp_path / "lib").resolve())
    home = str(Path(spikeguard.__file__).resolve().parents[1])
    command = [sys.executable, "-P", "-c", fresh_process.PROGRAM, home, "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("spikeguard "), done.stderr


def test_a_package_by_path_is_found_by_the_fresh_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed by nothing but a path, from its own folder."""
    package = tmp_path / "spikeguard"
    (package / "cli").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "cli" / "__init__.py").write_text("")
    (package / "cli" / "main.py").write_text("def main():\n    print('found')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ".")
    command = [sys.executable, "-I", "-S", "-c", fresh_process.PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=fresh_process._isolated(), capture_output=True, text=True)
    assert done.stdout == "found\n", done.stderr


def test_a_fresh_process_is_ended_once_the_user_stops() -> None:
    class Now:
        def is_set(self) -> bool:
            return True

    code, said = fresh_process._run([sys.executable, "-c", "import time; time.sleep(60)"], Now())
    assert (code, said) == (None, "stopped")


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("0.5", 0.5), ("1e999999999", None), ("nan", None), ("1/0", None)]
)
def test_budgets_are_finite(text: str, value: float | None) -> None:
    import argparse

    if value is not None:
        assert common.share_or_more(text) == value
        return
    with pytest.raises(argparse.ArgumentTypeError):
        common.share_or_more(text)


def test_a_matrix_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    axes = "".join(f'"defenses.tgo.{n}" = [{", ".join(["0.1"] * 999)}]\n' for n in ("delta", "sigma"))
    for text, said in (
        ('eps = "8/255"\nseeds = 1000000000\n', "must be at least 1 and at most"),
        ('eps = "8/255"\nseeds = true\n', "seeds = True"),
        (f'eps = "8/255"\n[axes]\n{axes}', "998001 combinations"),
        ('eps = "8/255"\n[base]\nrecipe = 3\n', "unknown recipe '3'"),
        ("eps = 8\n", "eps"),
    ):
        Path("m.toml").write_text(text)
        assert main(["sweep", "m.toml"]) == 2
        assert said in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["m.toml"]


def test_cells_of_a_table_are_no_formulas(capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((Path(__file__).parents[1] / "data" / "schema1" / "audit.json").read_text())
    from dataclasses import replace

    from spikeguard.auditing.export import as_csv
    from spikeguard.records.schema import AuditRecord

    audit = AuditRecord.from_json(record)
    for name in ("=cmd|' /C calc'!A0", "+1", "-1", "@x"):
        assert as_csv([replace(audit, origin=Origin(name))]).splitlines()[1].startswith(("'", "\"'"))


def test_a_result_never_replaces_what_its_verb_does_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("audit.json", "other.json"):
        Path(name).write_text((Path(__file__).parents[1] / "data" / "schema1" / "audit.json").read_text())
    Path("weights").write_bytes(b"\x08\x00")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for command in (
        "compare audit.json other.json --out audit.json",
        "compare audit.json other.json --out weights",
        "merge audit.json other.json --out ./audit.json",
        "merge audit.json other.json --out weights",
        "verify audit.json --out other.json",
        "export audit.json --format csv --out other.json",
    ):
        assert main(command.split()) == 2, command
        assert re.search("lost|one of the records", capsys.readouterr().err), command
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    for held in ("{}", '{"kind": "audit"}', "text", "[]"):
        Path("held").write_text(held)
        with pytest.raises(UserError, match="lost"):
            check_replaceable(Path("held"), lambda held: held.get("kind") == "attack")
    for held in ("", '{"kind": "attack", "digest": "another"}'):
        Path("held").write_text(held)
        check_replaceable(Path("held"), lambda held: held.get("kind") == "attack")
