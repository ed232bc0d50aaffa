"""A matrix of networks in a TOML file: a recipe, what varies, and how every network is audited.

    seeds = 3                               # or a list of seeds
    eps = "8/255"
    effort = "quick"
    images = 100

    [base]                                  # fields of a recipe, over the named one
    recipe = "vanilla"
    epochs = 2

    [axes]                                  # every combination of these values is a row
    "defenses.tgo.delta" = [0.4, 0.5, 0.7]

    [[rows]]                                # or: rows with a name and fields of their own
    name = "none"
    defenses.tgo = "off"

With both, every row is combined with every value of the axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Literal

from spikeguard.auditing.suite import Effort
from spikeguard.errors import UserError
from spikeguard.records.build import shown
from spikeguard.sweep.cells import Cell
from spikeguard.threat import THREATS, Threat
from spikeguard.training.recipe import Recipe, read_toml
from spikeguard.training.recipes import recipe
from spikeguard.training.settings import SURROGATES, build

MOST = 10_000
"""Rows, and seeds, that a sweep may have."""


@dataclass(frozen=True)
class SweepSettings:
    """How every network of a sweep is audited: threat, effort, ``images`` of a part of the data.

    Choose by 'validation' images, report on 'test' images: what was chosen on an image scores better there.
    """

    eps: float
    seeds: tuple[int, ...] = (0,)
    norm: Literal["linf", "l2", "l1"] = "linf"
    effort: Effort = "quick"
    images: int = 100
    part: Literal["validation", "test"] = "validation"

    @property
    def threat(self) -> Threat:
        """The threat as an object."""
        return THREATS[self.norm](self.eps)


@dataclass(frozen=True)
class Matrix:
    """The networks of a sweep: a recipe for every row, settings for all."""

    name: str
    rows: Mapping[str, Recipe]
    settings: SweepSettings

    def cells(self) -> Iterator[Cell]:
        """All networks, the first seed of all rows before the second of any."""
        for seed in self.settings.seeds:
            for row, chosen in self.rows.items():
                yield Cell("", row, seed, Recipe.of({**chosen.values(), "seed": seed}))


def read_matrix(path: Path) -> Matrix:
    """The matrix of a TOML file; UserError names the wrong field, its value and what is allowed."""
    values = read_toml(path)
    base, axes, rows = values.pop("base", {}), values.pop("axes", {}), values.pop("rows", [])
    if not isinstance(base, dict) or not isinstance(axes, dict) or not isinstance(rows, list):
        raise UserError(f"{path}: [base] and [axes] must be tables, [[rows]] a list of tables")
    if "eps" not in values:
        raise UserError(f'{path}: eps is missing: the budget of the audits, such as eps = "8/255"')
    seeds = values.get("seeds", 1)
    if type(seeds) is int:
        if not 1 <= seeds <= MOST:
            raise UserError(
                f"{path}: seeds = {shown(seeds)} must be at least 1 and at most {MOST}, or a list"
            )
        values["seeds"] = list(range(seeds))
    settings = build(SweepSettings, {name: _number(v) for name, v in values.items()}, str(path))
    if not settings.seeds or settings.images < 1:
        raise UserError(f"{path}: seeds and images must be at least 1")
    start = recipe(str(base.pop("recipe", "vanilla"))).values()
    THREATS[settings.norm](settings.eps)  # refuses a budget that is none
    if settings.norm == "linf" and settings.eps > 1:
        raise UserError(f"{path}: eps = {settings.eps:g} must lie in [0, 1] under linf, such as '8/255'")
    plain_rows = rows or [{"name": ""}]
    if wrong := [row for row in plain_rows if not isinstance(row, dict) or "name" not in row]:
        raise UserError(f"{path}: every one of [[rows]] needs a name; {wrong[0]} has none")
    combinations = _combinations(axes, str(path))
    recipes: dict[str, Recipe] = {}
    for row in plain_rows:
        for label, changes in combinations:
            name = ", ".join(part for part in (str(row["name"]), label) if part) or path.stem
            if name in recipes:
                raise UserError(f"{path}: two rows have the name {name!r}")
            own = {k: v for k, v in row.items() if k != "name"}
            chosen = reduce(merged, (base, own, *changes), start) | {"name": f"{path.stem} {name}"}
            recipes[name] = Recipe.of(chosen, f"{path}: {name}")
    return Matrix(path.stem, recipes, settings)


def _combinations(axes: Mapping[str, object], where: str) -> list[tuple[str, list[dict[str, object]]]]:
    """Every combination of the values of the axes: its label, and its changes of the recipe."""
    choices: list[list[object]] = []
    for axis, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: axes: {axis!r} = {values!r} must be a list of values")
        choices.append(values)
    if math.prod(map(len, choices)) > MOST:
        raise UserError(
            f"{where}: axes: {math.prod(map(len, choices))} combinations, at most {MOST} are allowed"
        )
    names = [_short(axis, axes) for axis in axes]
    return [
        (
            ", ".join(f"{name} {_label(value)}" for name, value in zip(names, chosen, strict=True)),
            [_nested(axis, value) for axis, value in zip(axes, chosen, strict=True)],
        )
        for chosen in product(*choices)
    ]


def merged(values: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """Nested values with changes: tables merge, 'off' removes one, another surrogate replaces one."""
    result = dict(values)
    for name, change in changes.items():
        before = result.get(name)
        if change == "off" and isinstance(before, Mapping):
            del result[name]
        elif isinstance(change, Mapping):
            kept = before if isinstance(before, Mapping) else {}
            if any(choice in SURROGATES for choice in change):
                kept = {k: v for k, v in kept.items() if k in change}
            result[name] = merged(kept, change)
        elif change != "off" or before is not None:
            result[name] = _number(change)
    return result


def _nested(dotted: str, value: object) -> dict[str, object]:
    """``{"a": {"b": value}}`` of "a.b"."""
    first, _, rest = dotted.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _short(axis: str, axes: Mapping[str, object]) -> str:
    """The last part of a dotted name, where no other axis has the same."""
    last = axis.rpartition(".")[2]
    return axis if sum(other.rpartition(".")[2] == last for other in axes) > 1 else last


def _label(value: object) -> str:
    """A value of an axis as a part of a row's name."""
    if not isinstance(value, Mapping):
        return str(value)
    return " + ".join(f"{k} {_label(v)}" if v != {} else k for k, v in value.items()) or "none"


def _number(value: object) -> object:
    """Fractions such as "8/255" as numbers; all else as it is."""
    if not isinstance(value, str) or "/" not in value:
        return value
    try:
        return float(Fraction(value))
    except (ValueError, ZeroDivisionError, OverflowError):
        return value
