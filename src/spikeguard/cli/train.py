"""spikeguard train"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from spikeguard.cli import common
from spikeguard.errors import UserError


def run(arguments: list[str]) -> int:
    from spikeguard.defenses import DEFENSES
    from spikeguard.training.recipe import Recipe, read_toml
    from spikeguard.training.recipes import RECIPES, recipe
    from spikeguard.training.settings import override

    fields = "\n".join(
        f"  --{name.replace('_', '-')} (now {value!r})" for name, value in Recipe().values().items()
    )
    parser = common.Parser(
        "train",
        "Train a network by a recipe into runs/NAME.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"recipes: {', '.join(RECIPES)}\ndefenses: {', '.join(DEFENSES)} (docs/defenses.md)\n\n"
        "every field of a recipe is a flag, also the inner ones: --neuron.decay 0.9 "
        f"--neuron.surrogate.triangle.width 1 --defenses.tgo.delta 0.3 --defenses.tgo off\n{fields}",
    )
    parser.add_argument("recipe", nargs="?", help="a recipe's name or a .toml file; left out with --resume")
    parser.add_argument("--out", type=Path, help="folder of the run (default runs/NAME)")
    parser.add_argument(
        "--resume", action="store_true", help="go on with an interrupted run, to the same bits"
    )
    parser.add_argument(
        "--save-every",
        type=int,
        default=0,
        metavar="STEPS",
        help="checkpoint every so many steps besides every epoch",
    )
    parser.add_argument(
        "--data-dir", help="folder of the data set (default: SPIKEGUARD_DATA, else the system's)"
    )
    parser.add_argument("--download", action="store_true", help="fetch the data set if it is missing")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    own, pairs = _split(arguments, {s for action in parser._actions for s in action.option_strings})
    given = parser.parse_args(own)
    if given.recipe is None:
        if not (given.resume and given.out):
            parser.error(f"name a recipe ({', '.join(RECIPES)}) or a .toml file")
        values = _of_state(given.out)
    elif given.recipe.endswith(".toml"):
        values = {"name": Path(given.recipe).stem} | read_toml(Path(given.recipe))
    else:
        values = recipe(given.recipe).values()
    for flag, text in pairs:
        override(values, flag, text)
    chosen = Recipe.of(values, given.recipe or "recipe")
    common.start(given.threads)
    out = given.out or Path("runs") / chosen.name

    from spikeguard.data.sources import load_data
    from spikeguard.training.loop import Report, train

    data = load_data(chosen.data, given.data_dir, given.download)
    with common.progress() as shown:

        def tell(report: Report) -> None:
            seen = (
                f", validation {100 * report.last['validation_accuracy']:.1f} %"
                if report.last and "validation_accuracy" in report.last
                else ""
            )
            shown.tell(
                f"training {chosen.name}", report.step, report.steps, f": loss {report.loss:.3f}{seen}"
            )

        done = train(
            chosen, out, given.resume, given.device, data=data, progress=tell, save_every=given.save_every
        )
    if given.json:
        common.print_json(done.metrics)
        return 0
    rows = [
        [
            str(r["epoch"]),
            f"{r['loss']:.3f}",
            f"{r['penalty']:.3f}",
            f"{100 * r['train_accuracy']:.1f}",
            _percent(r.get("validation_accuracy")),
        ]
        for r in done.metrics["epochs"]
    ]
    common.table(
        f"{chosen.name}, {done.metrics['cost']['seconds']:.0f} s",
        ["epoch", "loss", "of it penalty", "training, %", "validation, %"],
        rows,
    )
    print(f"wrote {out} (weights.safetensors, run.json, metrics.jsonl)\nnext: spikeguard attack {out}")
    return 0


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _of_state(folder: Path) -> dict[str, Any]:
    from spikeguard.training.checkpoint import STATE, load_tensors

    _, metadata = load_tensors(folder / STATE)
    values: dict[str, Any] = metadata["conditions"]["recipe"]
    return values


def _split(arguments: list[str], own: set[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The parser's own arguments, and ``--field value`` pairs.

    Taken out first, so that no value is mistaken for the recipe.
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
