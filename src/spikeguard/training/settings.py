"""Settings to and from plain values, for TOML files, records and command-line flags, with one kind of error.

A field that holds one of several classes (a surrogate, a defense) is written ``{name: {fields}}``:
``surrogate = {atan = {slope = 2.0}}``.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from spikeguard import surrogates
from spikeguard.defenses import DEFENSES, Defense
from spikeguard.errors import UserError, did_you_mean
from spikeguard.surrogates import Surrogate
from spikeguard.training import describe as description
from spikeguard.training.describe import FieldHelp

T = TypeVar("T")
SURROGATES: dict[str, type[Surrogate]] = {
    name.lower(): getattr(surrogates, name)
    for name in ("Triangle", "Atan", "Sigmoid", "Gaussian", "Rectangle", "Exponential", "StraightThrough")
}
CHOICES: dict[type, Mapping[str, type]] = {Surrogate: SURROGATES, Defense: DEFENSES}


ALIASES: dict[str, str] = {"defenses.input_quantisation": "defenses.input_quantization"}
"""Paths in recipes of version 0.1 and what they are called now; recipes, records and weights files may hold
either."""


def build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A frozen dataclass from plain values; UserError names the field, the value and what is allowed."""
    hints, fields = _hints(kind), {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := [k for k in values if k not in fields]:
        raise UserError(
            f"{where}: unknown field {unknown[0]!r} ({did_you_mean(unknown[0], fields)}known: "
            f"{', '.join(sorted(fields)) or 'none'})"
        )
    return kind(**{k: _convert(hints[k], v, f"{where}: {k}") for k, v in values.items()})


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise UserError(f"{where} = {value!r} must be one of {', '.join(map(str, args))}")
        return value
    if hint in CHOICES:
        if isinstance(value, hint):
            return value
        chosen = {value: {}} if isinstance(value, str) else value
        if not isinstance(chosen, Mapping) or len(chosen) != 1:
            raise UserError(
                f"{where} = {value!r} must name one of {', '.join(CHOICES[hint])}, as in "
                f"{{{next(iter(CHOICES[hint]))} = {{...}}}}"
            )
        return _choice(hint, *next(iter(chosen.items())), where)
    if origin is tuple and args[0] in CHOICES:
        if isinstance(value, Sequence) and all(isinstance(v, args[0]) for v in value):
            return tuple(value)
        if not isinstance(value, Mapping):
            raise UserError(
                f"{where} = {value!r} must be a table, as in {{{next(iter(CHOICES[args[0]]))} = {{...}}}}"
            )
        return tuple(_choice(args[0], name, v, where) for name, v in value.items())
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"{where} = {value!r} must be a list")
        return tuple(_convert(args[0], v, where) for v in value)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, _table(value, where), where)  # type: ignore[arg-type]
    if origin is dict:
        return {k: tuple(v) if isinstance(v, list) else v for k, v in _table(value, where).items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where} = {value!r} must be {_NAMES.get(hint, hint.__name__)}")
    return value


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} = {value!r} must be a table of fields")
    return value


def _choice(base: type, name: str, fields: Any, where: str) -> Any:
    if name not in CHOICES[base]:
        raise UserError(
            f"{where}: unknown {base.__name__.lower()} {name!r} ({did_you_mean(name, CHOICES[base])}known: "
            f"{', '.join(CHOICES[base])})"
        )
    return build(CHOICES[base][name], _table(fields, f"{where}.{name}"), f"{where}.{name}")


def unbuild(value: Any) -> Any:
    """Plain values of a settings object, such that ``build`` gives it back."""
    for base, names in CHOICES.items():
        if isinstance(value, base):
            name = next((n for n, c in names.items() if type(value) is c), "")
            if not name:
                raise UserError(
                    f"{type(value).__name__} has no name in recipes (known: {', '.join(names)}): register "
                    "it, or train without recipe"
                )
            return {name: {f.name: unbuild(getattr(value, f.name)) for f in dataclasses.fields(value)}}  # type: ignore[arg-type]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: unbuild(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: unbuild(v) for k, v in value.items()}
    if isinstance(value, tuple):
        parts = [unbuild(v) for v in value]
        return (
            {k: v for part in parts for k, v in part.items()}
            if parts and isinstance(value[0], Defense)
            else parts
        )
    return value


def read(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values as a person or an older version wrote them, ready for ``build``.

    Old names become new ones (``ALIASES``), '8/255' a number where a number belongs, 'on' and 'off' true and
    false where a choice of the two belongs, 'on' the default settings of a defense.
    """
    hints = {node.path: node.hint for node in description.walk(kind, CHOICES)}

    def inner(path: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            named = {ALIASES.get(f"{path}{k}", f"{path}{k}"): v for k, v in value.items()}
            return {name.removeprefix(path): inner(f"{name}.", v) for name, v in named.items()}
        hint = hints.get(path[:-1])
        if isinstance(value, (list, tuple)):
            return type(value)(_of_text(hint, v) for v in value)
        return _of_text(hint, value)

    read_values: dict[str, Any] = inner("", values)
    return read_values


_FRACTION = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")


def _of_text(hint: Any, value: Any) -> Any:
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


def override(values: dict[str, Any], dotted: str, text: str) -> None:
    """Set one value from a flag, ``override(v, "neuron.decay", "0.5")``.

    'on' and 'off' add a defense with its default settings and remove it.
    """
    *path, last = dotted.replace("-", "_").split(".")
    here: Any = values
    for depth, name in enumerate(path):
        if here.get(name) is None or not isinstance(here[name], dict):
            if isinstance(here.get(name), (int, float, str)) and here[name] != "on":
                raise UserError(f"--{dotted}: {'.'.join(path[: depth + 1])} is not a table")
            here[name] = {}
        if name in SURROGATES:  # another choice takes the place of the one before
            for other in [k for k in here if k != name]:
                del here[other]
        here = here[name]
    if text == "off" and (isinstance(here.get(last), dict) or path == ["defenses"]):
        here.pop(last, None)
    elif text == "on" and path == ["defenses"]:
        here.setdefault(last, {})
    else:
        here[last] = _parsed(text)


def _parsed(text: str) -> Any:
    """A flag's text as TOML (fractions in a list, too), else as it stands."""
    for attempt in (text, _FRACTION.sub(r'"\1/\2"', text)):
        try:
            return tomllib.loads(f"v = {attempt}")["v"]
        except tomllib.TOMLDecodeError:
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
