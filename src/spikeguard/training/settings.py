"""Recipes to and from plain values: what ``records.build`` does, with surrogates and defenses by name,
and what people write on the command line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

from spikeguard import surrogates
from spikeguard.defenses import DEFENSES, Defense
from spikeguard.errors import UserError, unknown
from spikeguard.records import build as plain_values
from spikeguard.registry import Registry
from spikeguard.surrogates import Surrogate
from spikeguard.training import describe as description
from spikeguard.training.describe import FieldHelp

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
SURROGATES: Registry[type[Surrogate]] = Registry(
    "surrogate",
    {
        name.lower(): getattr(surrogates, name)
        for name in ("Triangle", "Atan", "Sigmoid", "Gaussian", "Rectangle", "Exponential", "StraightThrough")
    },
)
CHOICES: dict[type, Mapping[str, type]] = {Surrogate: SURROGATES, Defense: DEFENSES}


ALIASES: dict[str, str] = {"defenses.input_quantisation": "defenses.input_quantization"}
"""Paths in recipes of version 0.1 and what they are called now; recipes, records and weights files may hold
either."""


def build(kind: type[T], values: Mapping[str, object], where: str) -> T:
    """A frozen dataclass from plain values; UserError names the field, the value and what is allowed."""
    return plain_values.build(kind, values, where, CHOICES)


def unbuild(settings: DataclassInstance) -> dict[str, object]:
    """Plain values of a settings object, such that ``build`` gives it back."""
    return plain_values.unbuild(settings, CHOICES)


def read(kind: type, values: Mapping[str, object]) -> dict[str, object]:
    """Plain values as a person or an older version wrote them, ready for ``build``.

    Old names become new ones (``ALIASES``), '8/255' a number where a number belongs, 'on' and 'off' true and
    false where a choice of the two belongs, 'on' the default settings of a defense.
    """
    hints = {node.path: node.hint for node in description.walk(kind, CHOICES)}

    def table(path: str, values: Mapping[str, object]) -> dict[str, object]:
        named = {ALIASES.get(f"{path}{k}", f"{path}{k}"): v for k, v in values.items()}
        return {name.removeprefix(path): inner(f"{name}.", v) for name, v in named.items()}

    def inner(path: str, value: object) -> object:
        if isinstance(value, Mapping):
            return table(path, value)
        hint = hints.get(path[:-1])
        if isinstance(value, (list, tuple)):
            return type(value)(_of_text(hint, v) for v in value)
        return _of_text(hint, value)

    return table("", values)


_FRACTION = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")


def _of_text(hint: object, value: object) -> object:
    if not isinstance(value, str):
        return value
    kind = None if hint is None else description.element(hint)
    if kind is float and (parts := _FRACTION.fullmatch(value)) and float(parts[2]):
        return float(parts[1]) / float(parts[2])
    if kind is bool and value in ("on", "off"):
        return value == "on"
    if value == "on" and isinstance(kind, type) and issubclass(kind, Defense):
        return {}
    return value


def override(values: dict[str, object], dotted: str, text: str) -> None:
    """Set one value from a flag, ``override(v, "neuron.decay", "0.5")``.

    'on' and 'off' add a defense with its default settings and remove it.
    """
    *path, last = dotted.replace("-", "_").split(".")
    here = values
    for depth, name in enumerate(path):
        inner = here.get(name)
        if not isinstance(inner, dict):
            if isinstance(inner, (int, float, str)) and inner != "on":
                raise UserError(f"--{dotted}: {'.'.join(path[: depth + 1])} is not a table")
            inner = here[name] = {}
        if name in SURROGATES:  # another choice takes the place of the one before
            for other in [k for k in here if k != name]:
                del here[other]
        here = inner
    if text == "off" and (isinstance(here.get(last), dict) or path == ["defenses"]):
        here.pop(last, None)
    elif text == "on" and path == ["defenses"]:
        here.setdefault(last, {})
    else:
        here[last] = _parsed(text)


def _parsed(text: str) -> object:
    """A flag's text as TOML (fractions in a list, too), else as it stands."""
    for attempt in (text, _FRACTION.sub(r'"\1/\2"', text)):
        try:
            value: object = tomllib.loads(f"v = {attempt}")["v"]
            return value
        except (ValueError, RecursionError):  # no TOML, a number of thousands of digits, nested too deeply
            continue
    return None if text == "none" else text


def describe() -> list[FieldHelp]:
    """Every flag of a recipe as (dotted flag, what it takes, default as a user writes it, one line of help).

    >>> from spikeguard.training.settings import describe
    >>> next(row for row in describe() if row.flag == "defenses.at.eps").default
    '8/255'
    """
    from spikeguard.training.recipe import Recipe  # it is built by this module

    return description.describe(Recipe, CHOICES)


def surrogate_of(text: str) -> Surrogate:
    """A surrogate from a text such as ``atan:8``."""
    name, colon, value = text.partition(":")
    if name not in SURROGATES:
        raise unknown("surrogate", name, SURROGATES, "attack: ")
    kind = SURROGATES[name]
    first = [f.name for f in fields(kind)][:1]  # type: ignore[arg-type]
    if not colon:
        return kind()
    if not first:
        raise UserError(f"attack: --surrogate {text}: {name} has no number")
    try:
        number = float(value)
    except ValueError as error:
        raise UserError(f"attack: --surrogate {text}: {value!r} must be a number") from error
    return kind(**{first[0]: number})
