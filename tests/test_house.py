"""Limits that the code keeps: parameters of a function, lines with ``Any``, private names.

Complexity and line length are ruff's.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import spikeguard as sg
from spikeguard.attacks import ATTACKS

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "spikeguard").rglob("*.py"))
PARAMETERS, ANY = 8, 60
PUBLIC = {*(attack.function.__name__ for attack in ATTACKS.values()), "minimal", *dir(sg)}


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def test_no_function_but_the_public_ones_takes_more_than_eight_parameters() -> None:
    long = []
    for where, node in functions():
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if len([n for n in names if n not in ("self", "cls", "ctx")]) > PARAMETERS:
            long.append((where, node.name))
    assert [where for where, name in long if name not in PUBLIC] == []


def test_few_lines_say_any() -> None:
    lines = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in SOURCES
        for line in path.read_text().splitlines()
        if re.search(r"\bAny\b", line) and "import" not in line
    ]
    assert len(lines) < ANY, "\n".join(lines)


MAKERS = {f"torch.{name}" for name in "rand randn empty zeros ones full linspace eye normal".split()}  # noqa: SIM905


def test_no_tensor_takes_torchs_default_type() -> None:
    """A user may have set another one: draws and masks would follow it."""
    loose = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) in MAKERS):
                continue
            if not any(keyword.arg == "dtype" for keyword in node.keywords):
                loose.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert loose == []


MEASURING = ("attacks", "auditing", "data", "diagnose", "gradients", "kernels", "random", "training")
PLACED = MAKERS | {f"torch.{name}" for name in "arange tensor randint randperm".split()}  # noqa: SIM905


def test_no_tensor_of_a_measurement_takes_torchs_default_device() -> None:
    """A user may have set another one: draws and masks would lie elsewhere than the images."""
    loose = []
    for path in SOURCES:
        if not set(MEASURING) & set(path.relative_to(ROOT).parts) and path.name != "threat.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) in PLACED):
                continue
            if not any(keyword.arg == "device" for keyword in node.keywords):
                loose.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert loose == []


def test_tests_import_public_names_only() -> None:
    private = []
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spikeguard"):
                private += [f"{path.name}: {a.name}" for a in node.names if a.name.startswith("_")]
    assert private == []
