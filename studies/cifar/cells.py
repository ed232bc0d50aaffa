"""The trainings of the study, as data: ``cells.toml``.

A row of ``[[cells]]`` has the fields of ``Plan`` and fields of a recipe, over those of ``[base]``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from spikeguard.auditing.suite import Effort
from spikeguard.errors import UserError
from spikeguard.sweep.cells import Cell
from spikeguard.sweep.matrix import merged
from spikeguard.training.recipe import Recipe, read_toml
from spikeguard.training.recipes import recipe
from spikeguard.training.settings import build

CELLS = Path(__file__).with_name("cells.toml")


@dataclass(frozen=True)
class Plan:
    """What a cell is for: its ``question``, ``minutes`` of two free cores, how its network is audited.

    ``keep``: the weights become part of the results. ``save_every``: steps between two checkpoints.
    """

    name: str
    question: str = ""
    minutes: float = 40.0
    effort: Effort = "quick"
    images: int = 200
    eps: float = 8 / 255
    keep: bool = False
    save_every: int = 50


OWN = {f.name for f in fields(Plan)}


@dataclass(frozen=True)
class Planned:
    """A cell with its plan."""

    plan: Plan
    cell: Cell


def read_cells(path: Path = CELLS) -> tuple[Planned, ...]:
    """The cells of a file, in their order; UserError names a wrong field, or a name that is there twice."""
    values = read_toml(path)
    base, rows = values.get("base", {}), values.get("cells", [])
    if not isinstance(base, dict) or not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: [base] must be a table and [[cells]] a list of tables")
    start = recipe(str(base.get("recipe", "vanilla"))).values()
    changes = {k: v for k, v in base.items() if k != "recipe"}
    planned = tuple(
        _planned(row, _without_options(changes, row), _without_options(start, row)) for row in rows
    )
    names = [p.cell.name for p in planned]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: two cells have the name {twice[0]!r}")
    return planned


def _without_options(values: dict[str, object], row: dict[str, object]) -> dict[str, object]:
    """Values without the options of a network where the row names its own: those of another do not fit it."""
    return {k: v for k, v in values.items() if k != "options" or "options" not in row}


def _planned(row: dict[str, object], base: dict[str, object], start: dict[str, object]) -> Planned:
    both = merged(base, row)
    plan = build(Plan, {k: v for k, v in both.items() if k in OWN}, f"cell {row.get('name')}")
    chosen = {k: v for k, v in both.items() if k not in OWN - {"name"}}
    trained = Recipe.of(merged(start, chosen), f"cell {plan.name}")
    if not trained.validation:
        raise UserError(f"cell {plan.name}: validation = 0 leaves nothing to audit on")
    return Planned(plan, Cell("", plan.name, trained.seed, trained))
