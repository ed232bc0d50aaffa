"""Generated bad input: command lines, recipes, records, witnesses. It ends in one line and exit code 2, or in
1 where that is the contract; never in a traceback, and never with anything half-written.

``SPIKEGUARD_HOSTILE=1000`` tries so many of each kind.
"""

import io
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from conftest import little_recipe, shorten_controls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from narrow import as_a
from torch import Tensor

from spikeguard.auditing.audit import audit
from spikeguard.cli.main import VERBS, main
from spikeguard.cli.target import Target, find
from spikeguard.defenses import DEFENSES
from spikeguard.records.plain import Json
from spikeguard.threat import Linf
from spikeguard.training.describe import walk
from spikeguard.training.loop import train
from spikeguard.training.recipe import Recipe
from spikeguard.training.settings import CHOICES

USUAL = 12
COUNT = int(os.environ.get("SPIKEGUARD_HOSTILE", USUAL))
hostile = settings(
    max_examples=COUNT,
    deadline=None,
    derandomize=COUNT == USUAL,
    database=None,
    suppress_health_check=list(HealthCheck),
)

TEXTS = [
    "",
    " ",
    "x[/y]",
    "\x1b[31m",
    "a\nb",
    "$\\frac{$",
    "=1+1",
    "../../x",
    "/dev/zero",
    "é",
    "\udcff",
    "none",
]
NUMBERS = [0, -1, 1, 2, 8, 0.5, 1e-320, 1e308, 10**30, 10**400, -(10**30), float("inf"), float("nan"), True]
WORDS = [
    *TEXTS,
    "8/255",
    "8/0",
    "1e400",
    "1e999999999",
    "nan",
    "-inf",
    "1" * 5000,
    "{a = 1}",
    "[[[]]]",
    "a=b",
]
values = st.sampled_from([*TEXTS, *NUMBERS, [], [1], {}, {"a": 1}, None])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trained network ``run`` and an audit of it; tests work in it."""
    folder = tmp_path_factory.mktemp("hostile")
    torch.set_num_threads(1)
    train(little_recipe(train_images=200, epochs=1, options={"width": 2}, timesteps=1), folder / "run")
    target = find(str(folder / "run"), 20, None, None, "cpu")
    x, y = target.test.pixels(), target.model(target.test.pixels()).argmax(1)
    y = torch.where(torch.arange(20) < 10, y, target.test.y)
    with pytest.MonkeyPatch.context() as patch:
        shorten_controls(patch)
        audit(target.model, x, y, Linf(0.1), effort="quick", out=folder / "a", index=target.test.index)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def outcome(arguments: list[str]) -> tuple[object, list[str]]:
    """Exit code and lines on stderr, without those of progress."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            code: object = main(arguments)
        except SystemExit as end:  # --help
            code = end.code
    assert "\x1b" not in out.getvalue() + err.getvalue()
    assert "Traceback" not in err.getvalue()
    return code, err.getvalue().splitlines()


def check(arguments: list[str], allowed: set[int]) -> None:
    code, lines = outcome(arguments)
    assert code in allowed, (arguments, code, lines)
    if code == 2:
        assert lines[-1].startswith("spikeguard: ")
        assert sum(not line.startswith(PROGRESS) for line in lines) == 1, lines
    left = [p for p in Path().rglob("*") if p.name.startswith(".") and p.name.count(".") > 2]
    assert not left


PROGRESS = ("spikeguard: verifying", "spikeguard: training", "spikeguard: warning:", "spikeguard: 'audit --")

FLAGS = {
    "audit": [
        "--eps",
        "--norm",
        "--effort",
        "--images",
        "--seed",
        "--data",
        "--device",
        "--out",
        "--threads",
    ],
    "attack": ["--eps", "--attack", "--steps", "--restarts", "--surrogate", "--seed", "--queries", "--loss"],
    "train": [
        "--out",
        "--epochs",
        "--name",
        "--lr",
        "--data",
        "--options.width",
        "--neuron.decay",
        "--save-every",
    ],
    "bench": ["--rounds", "--device", "--out"],
    "demo": ["--images", "--epochs", "--seed", "--out"],
    "sweep": ["--jobs", "--out", "--device"],
}


@hostile
@given(st.data())
def test_command_lines(place: Path, data: st.DataObject) -> None:
    verb = data.draw(st.sampled_from([*VERBS, "fly"]))
    # work begins with a target or a recipe that there is: none of these is one
    rest = data.draw(st.lists(st.sampled_from(["nowhere", "a:b", "no.toml", *TEXTS]), min_size=1, max_size=2))
    for flag in data.draw(st.lists(st.sampled_from(FLAGS.get(verb, ["--out", "--json"])), max_size=3)):
        rest += [flag, data.draw(st.sampled_from(WORDS))]
    check([verb, *rest], {2})


@hostile
@given(st.data())
def test_options_of_an_attack_on_a_network_that_there_is(place: Path, data: st.DataObject) -> None:
    flag = data.draw(
        st.sampled_from([*FLAGS["attack"], "--norm", "--out", "--images", "--batch-size", "--eot"])
    )
    bad = [word for word in WORDS if word not in ("8/255", "none", "é", "a=b", "x[/y]", "=1+1")]
    if flag == "--out":
        bad = ["", " ", "/dev/null/x", "run", "a" * 300]
    check(["attack", "run", flag, data.draw(st.sampled_from(bad))], {2})


def as_toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return "1" + "0" * 400 if value == 10**400 else str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return '"none"' if value is None else json.dumps(value)


FIELDS = [
    n.path for n in walk(Recipe, CHOICES) if n.path not in ("data", "epochs", "train_images", "batch_size")
]
INSIDE = [
    f"options.{n}" for n in ("seed", "mean", "classes", "neuron", "in_shape", "width", "depth", "nothing")
]


@hostile
@given(st.data())
def test_recipes(place: Path, data: st.DataObject) -> None:
    tables = {"train_images": 20, "epochs": 1, "batch_size": 10, "timesteps": 1, "validation": 0.0}
    lines = [f"{k} = {v}" for k, v in tables.items()] + ["augment = false", "options.width = 1"]
    field = data.draw(st.sampled_from([*FIELDS, *INSIDE, *(f"defenses.{name}" for name in DEFENSES)]))
    text = as_toml(data.draw(values))
    lines = [line for line in lines if not line.startswith(f"{field} =")]
    Path("bad.toml").write_text("\n".join([*lines, f"{field} = {text}"]), errors="backslashreplace")
    try:
        check(["train", "bad.toml", "--out", "trained"], {0, 2})
    finally:
        shutil.rmtree("trained", ignore_errors=True)


Way = tuple[str | int, ...]
"""Keys that lead to a place in a JSON value."""


def paths(value: Json, at: Way = ()) -> Iterator[Way]:
    """All places in a JSON value."""
    inside: Iterable[tuple[str | int, Json]] = (
        value.items() if isinstance(value, dict) else enumerate(as_a(list, value))
    )
    for key, inner in inside:
        yield (*at, key)
        if isinstance(inner, (dict, list)):
            yield from paths(inner, (*at, key))


@hostile
@given(st.data())
def test_edited_records(place: Path, data: st.DataObject) -> None:
    record = json.loads((place / "a" / "audit.json").read_text())
    if data.draw(st.booleans()):
        del record["digest"]
    *way, last = data.draw(st.sampled_from(list(paths(record))))
    inner = record
    for key in way:
        inner = inner[key]
    if data.draw(st.booleans()) and isinstance(inner, dict):
        del inner[last]
    else:
        inner[last] = data.draw(values)
    shutil.copytree("a", "edited", dirs_exist_ok=True)
    text = (
        json.dumps(record).replace("1" + "0" * 400, "1" + "0" * 399)
        if last != "digest"
        else json.dumps(record)
    )
    Path("edited/audit.json").write_text(text)
    verb = data.draw(
        st.sampled_from(
            [
                ["export", "edited"],
                ["export", "edited", "--format", "methods"],
                ["compare", "edited", "a"],
                ["merge", "edited", "a", "--out", "m.json"],
                ["verify", "edited"],
            ]
        )
    )
    check(verb, {0, 1, 2})


@hostile
@given(st.data())
def test_damaged_witnesses(place: Path, data: st.DataObject) -> None:
    shutil.copytree("a", "edited", dirs_exist_ok=True)
    path = Path("edited/audit.witnesses.npz")
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole[: data.draw(st.integers(len(whole) // 2, len(whole)))])
    check(["merge", "edited", "a", "--out", "m.json"], {0, 2})
    from spikeguard.auditing.verify import verify
    from spikeguard.errors import UserError
    from spikeguard.records.schema import AuditRecord

    target = find("run", 20, None, None, "cpu")
    try:
        wrong = verify(
            AuditRecord.read(place / "a" / "audit.json"), "edited", target.model, *pixels(target)
        ).wrong
    except UserError as error:
        wrong = (str(error),)
    assert wrong
    assert not any("\n" in line for line in wrong)


def pixels(target: Target) -> tuple[Tensor, Tensor]:
    x = target.test.pixels()
    y = target.model(x).argmax(1)
    return x, torch.where(torch.arange(20) < 10, y, target.test.y)
