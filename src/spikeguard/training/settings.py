"""Recipes to and from plain values: what ``records.build`` does, with surrogates and defenses by name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any, TypeVar

from spikeguard import surrogates
from spikeguard.defenses import DEFENSES, Defense
from spikeguard.errors import UserError
from spikeguard.records import build as plain_values
from spikeguard.surrogates import Surrogate

T = TypeVar("T")
SURROGATES: dict[str, type[Surrogate]] = {
    name.lower(): getattr(surrogates, name)
    for name in ("Triangle", "Atan", "Sigmoid", "Gaussian", "Rectangle", "Exponential", "StraightThrough")
}
CHOICES: dict[type, Mapping[str, type]] = {Surrogate: SURROGATES, Defense: DEFENSES}


def build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A frozen dataclass from plain values; UserError names the field, the value and what is allowed."""
    return plain_values.build(kind, values, where, CHOICES)


def unbuild(value: object) -> Any:
    """Plain values of a settings object, such that ``build`` gives it back."""
    return plain_values.unbuild(value, CHOICES)


def override(values: dict[str, Any], dotted: str, text: str) -> None:
    """Set one value from a flag: ``override(v, "neuron.decay", "0.5")``; 'off' takes a table away."""
    *path, last = dotted.replace("-", "_").split(".")
    here: Any = values
    for depth, name in enumerate(path):
        if here.get(name) is None or not isinstance(here[name], dict):
            if isinstance(here.get(name), (int, float, str)):
                raise UserError(f"--{dotted}: {'.'.join(path[: depth + 1])} is not a table")
            here[name] = {}
        if name in SURROGATES:  # another choice takes the place of the one before
            for other in [k for k in here if k != name]:
                del here[other]
        here = here[name]
    if text == "off" and isinstance(here.get(last), dict):
        del here[last]
        return
    try:
        here[last] = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        here[last] = None if text == "none" else text
