"""``spikeguard train``: train a network by a recipe."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from spikeguard.cli import common
from spikeguard.cli.progress import progress
from spikeguard.errors import UserError

if TYPE_CHECKING:
    from spikeguard.training.loop import Run
    from spikeguard.training.recipe import Recipe
    from spikeguard.training.trainer import Report

EXAMPLES = """every field of a recipe is a flag, the inner ones too:
  --neuron.decay 0.9   --neuron.surrogate.triangle.width 1   --defenses.at.eps 2/255   --defenses.tgo off

recipes: """
FIELD = "field "
"""Before the name of a field in the parsed arguments: fields are read apart from them."""


def parser() -> common.Parser:
    from spikeguard.training.recipes import RECIPES

    made = common.Parser(
        "train", "Train a network by a recipe into runs/NAME.", epilog=EXAMPLES + ", ".join(RECIPES)
    )
    made.usage = "spikeguard train [options] [--FIELD VALUE ...] [recipe]"
    made.add_argument(
        "recipe",
        nargs="?",
        type=common.named,
        help="a recipe's name or a .toml file; not needed with --resume",
    )
    made.add_argument(
        "--out", type=common.path, metavar="FOLDER", help="folder of the run (default: runs/NAME)"
    )
    made.add_argument("--resume", action="store_true", help="go on with an interrupted run, to the same bits")
    made.add_argument(
        "--save-every",
        type=common.positive,
        metavar="STEPS",
        help="checkpoint every so many steps, besides every epoch",
    )
    common.add_data_options(made)
    made.add_argument("--download", action="store_true", help="download the data set if it is missing")
    _add_fields(made)
    return made


def _add_fields(made: common.Parser) -> None:
    """A flag for every field of a recipe: for the help and for completion."""
    from spikeguard.training.settings import describe

    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in describe():
        path = field.flag.split(".")
        title = "fields of " + (".".join(path[: 1 + (path[0] == "defenses")]) if path[1:] else "the recipe")
        if title not in groups:
            groups[title] = made.add_argument_group(title)
        default = f" (default: {field.default})" if field.default else ""
        groups[title].add_argument(
            f"--{field.flag.replace('_', '-')}",
            dest=FIELD + field.flag,
            metavar=_metavar(field.type),
            default=argparse.SUPPRESS,
            help=f"{field.help}{default}".replace("%", "%%"),
        )


def _metavar(takes: str) -> str:
    """One word for what a field takes."""
    words = {"whole number": "N", "number": "X", "true | false": "BOOL", "text": "TEXT", "on | off": "on|off"}
    base = takes.removesuffix(" | none")
    if base.startswith("list of"):
        return "LIST"
    return words.get(base, base.replace(" ", "") if "|" in base else "VALUE")


def run(arguments: list[str]) -> int:
    made = parser()
    own = {
        flag
        for action in made._actions
        if not action.dest.startswith(FIELD)
        for flag in action.option_strings
    }
    rest, pairs = _split(arguments, own)
    given = made.read(rest)
    recipe = _with_own_data(_recipe(given, pairs, made))
    common.start(given.threads)
    out = given.out or Path("runs") / recipe.name

    from spikeguard.data.sources import load_data
    from spikeguard.training.loop import train

    data = load_data(recipe.data, given.data_dir, given.download)
    with progress() as shown:

        def show(report: Report) -> None:
            shown.show(f"training {recipe.name}", report.step, report.steps, _detail(report))

        done = train(
            recipe,
            out,
            given.resume,
            given.device,
            data=data,
            progress=show,
            save_every=given.save_every or 0,
        )
    if given.json:
        common.print_json(done.record.to_json())
    else:
        _show(done, recipe.name, out)
    return 0


def _with_own_data(recipe: Recipe) -> Recipe:
    """Images of the user's own by their whole path, so that audits find them from any folder."""
    from spikeguard.data.own import is_own
    from spikeguard.data.sources import DATA

    own = recipe.data not in DATA and is_own(recipe.data)
    return replace(recipe, data=str(Path(recipe.data).resolve())) if own else recipe


def _recipe(given: argparse.Namespace, pairs: list[tuple[str, str]], made: common.Parser) -> Recipe:
    """The recipe that a command names, with its flags applied."""
    from spikeguard.training.checkpoint import recipe_of_state
    from spikeguard.training.recipe import Recipe, read_toml
    from spikeguard.training.recipes import RECIPES, recipe
    from spikeguard.training.settings import override

    if given.recipe is None:
        if not (given.resume and given.out):
            made.error(f"name a recipe ({', '.join(RECIPES)}) or a .toml file")
        values = recipe_of_state(given.out)
    elif given.recipe.endswith(".toml"):
        values = {"name": Path(given.recipe).stem} | read_toml(Path(given.recipe))
    else:
        values = recipe(given.recipe).values()
    for flag, text in pairs:
        override(values, flag, text)
    return Recipe.of(values, given.recipe or "recipe")


def _detail(report: Report) -> str:
    """Loss and last validation accuracy, for the progress bar."""
    accuracy = report.last.validation_accuracy if report.last else None
    return f": loss {report.loss:.3f}" + ("" if accuracy is None else f", validation {100 * accuracy:.1f} %")


def _show(done: Run, name: str, out: Path) -> None:
    rows = [
        [
            str(row.epoch),
            f"{row.loss:.3f}",
            f"{row.penalty:.3f}",
            f"{100 * row.train_accuracy:.1f}",
            _percent(row.validation_accuracy),
        ]
        for row in done.record.epochs
    ]
    common.table(
        f"{name}, {done.record.cost.seconds:.0f} s",
        ["epoch", "loss", "of it penalty", "training, %", "validation, %"],
        rows,
    )
    common.say(f"wrote {out} (weights.safetensors, run.json, metrics.jsonl)")
    common.say(f"next: spikeguard audit {out} --effort quick")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _split(arguments: list[str], own: set[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The parser's own arguments, and ``--field value`` pairs.

    The pairs are taken out first, so that no value is mistaken for the recipe.
    """
    rest, pairs, left = [], [], list(arguments)
    while left:
        flag = left.pop(0)
        name, equals, value = flag.partition("=")
        if not flag.startswith("--") or name in own:
            rest.append(flag)
            continue
        if not equals:
            if not left or left[0].startswith("--"):
                raise UserError(f"train: {flag} needs a value")
            value = left.pop(0)
        pairs.append((name[2:], value))
    return rest, pairs
