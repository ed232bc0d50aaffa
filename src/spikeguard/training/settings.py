"""Settings to and from plain values: TOML files, records and command-line flags all pass through here, with
one kind of error.

A field that holds one of several classes (a surrogate, a defense) is written ``{name: {fields}}``:
``surrogate = {atan = {slope = 2.0}}``.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from spikeguard import surrogates
from spikeguard.defenses import DEFENSES, Defense
from spikeguard.errors import UserError
from spikeguard.surrogates import Surrogate

T = TypeVar("T")
SURROGATES: dict[str, type[Surrogate]] = {
    name.lower(): getattr(surrogates, name)
    for name in ("Triangle", "Atan", "Sigmoid", "Gaussian", "Rectangle", "Exponential", "StraightThrough")
}
CHOICES: dict[type, Mapping[str, type]] = {Surrogate: SURROGATES, Defense: DEFENSES}


def build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A frozen dataclass from plain values; UserError names the field, the value and what is allowed."""
    hints, fields = _hints(kind), {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := [k for k in values if k not in fields]:
        raise UserError(
            f"{where}: unknown field {unknown[0]!r} (known: {', '.join(sorted(fields)) or 'none'})"
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
            f"{where}: unknown {base.__name__.lower()} {name!r} (known: {', '.join(CHOICES[base])})"
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
