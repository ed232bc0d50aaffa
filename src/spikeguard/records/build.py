"""Dataclasses to and from plain values: recipes, records and command-line flags share one builder.

A field that holds one of several classes (a surrogate, a defense) is written ``{name: {fields}}``:
``surrogate = {atan = {slope = 2.0}}``. ``Choices`` says which names a base class has.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from spikeguard.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
Choices = Mapping[type, Mapping[str, type]]
NO_CHOICES: Choices = {}
SHOWN = 120  # characters of a value in a message
LARGEST = 2**63 - 1  # what a whole number of torch holds
BITS = "a string of 0 and 1 where all values are 0 or 1"
Outcomes = Annotated[tuple[float, ...], BITS]
"""One value an image: 0 or 1, or a share of draws. Written as '0110' where no value lies in between."""
_NAMES: dict[object, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def build(kind: type[T], values: Mapping[str, object], where: str, choices: Choices = NO_CHOICES) -> T:
    """A frozen dataclass from plain values.

    Raises:
        UserError: names the field, the value and what is allowed, in one line.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := [k for k in values if k not in fields]:
        raise UserError(
            f"{where}: unknown field {shown(unknown[0])} ({did_you_mean(unknown[0], fields)}known: "
            f"{', '.join(sorted(fields)) or 'none'})"
        )
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    if lacking := [
        k for k, f in fields.items() if k not in values and (f.default, f.default_factory) == missing
    ]:
        raise UserError(f"{where}: field {lacking[0]!r} is missing")
    types_ = hints(kind)  # type: ignore[arg-type]
    return kind(
        **{
            k: v if _is_default(fields[k], v) else _convert(types_[k], v, f"{where}: {k}", choices)
            for k, v in values.items()
        }
    )


def _is_default(field: dataclasses.Field[object], value: object) -> bool:
    """Is it a number that no other field could be, such as a width that is infinite unless one is given?"""
    return isinstance(value, float) and isinstance(field.default, float) and value == field.default


@cache
def hints(kind: type) -> dict[str, object]:
    """The types of a class's fields, by name."""
    return get_type_hints(kind, include_extras=True)


def _convert(hint: object, value: object, where: str, choices: Choices) -> object:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return _frozen(value)
    if origin is Annotated:
        return _outcomes(value, where) if BITS in args[1:] else _convert(args[0], value, where, choices)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(_arm(args, value), value, where, choices)
    if origin is Literal:
        if value not in args:
            raise UserError(f"{where} = {shown(value)} must be one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        return _tuple(args, value, where, choices)
    if origin is dict:
        return {k: _convert(args[1], v, f"{where}.{k}", choices) for k, v in table(value, where).items()}
    if not isinstance(hint, type):
        raise TypeError(f"{where}: no field can have the type {hint!r}")
    if hint in choices:
        return _choose(hint, value, where, choices)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, table(value, where), where, choices)
    return _scalar(hint, value, where)


def _scalar(hint: type, value: object, where: str) -> object:
    if hint in (int, float) and type(value) is int:
        if abs(value) > LARGEST:
            raise UserError(f"{where} = {shown(value)} must lie between -2**63 and 2**63")
        return hint(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where} = {shown(value)} must be {_NAMES.get(hint, hint.__name__)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} = {value} must be a finite number")
    return value


def shown(value: object) -> str:
    """A value for a message, in one line of bounded length."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no number of thousands of digits
        return f"a {type(value).__name__} too long to write"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _arm(args: tuple[object, ...], value: object) -> object:
    """The member of a union that a value is meant for."""
    arms = [a for a in args if a is not type(None)]
    if isinstance(value, (list, tuple)):
        return next((a for a in arms if get_origin(a) is tuple), arms[0])
    if isinstance(value, Mapping):
        return next((a for a in arms if get_origin(a) is dict), arms[0])
    return next((a for a in arms if isinstance(a, type) and isinstance(value, a)), arms[0])


def _tuple(args: tuple[object, ...], value: object, where: str, choices: Choices) -> tuple[object, ...]:
    base = args[0]
    if isinstance(base, type) and base in choices:
        if isinstance(value, Sequence) and all(isinstance(v, base) for v in value):
            return tuple(value)
        if not isinstance(value, Mapping):
            raise UserError(
                f"{where} = {shown(value)} must be a table, as in {{{next(iter(choices[base]))} = {{...}}}}"
            )
        return tuple(_choice(base, name, v, where, choices) for name, v in value.items())
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UserError(f"{where} = {shown(value)} must be a list")
    kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
    if len(kinds) != len(value):
        raise UserError(f"{where} = {shown(value)} must be a list of {len(kinds)} values")
    return tuple(_convert(kind, v, where, choices) for kind, v in zip(kinds, value, strict=True))


def _outcomes(value: object, where: str) -> tuple[float, ...]:
    if isinstance(value, str) and not set(value) - {"0", "1"}:
        return tuple(float(c) for c in value)
    if isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in value):
        return tuple(float(v) for v in value)
    raise UserError(f"{where} must be a string of 0 and 1 or a list of numbers in [0, 1]")


def _choose(base: type, value: object, where: str, choices: Choices) -> object:
    if isinstance(value, base):
        return value
    chosen = {value: {}} if isinstance(value, str) else value
    if not isinstance(chosen, Mapping) or len(chosen) != 1:
        raise UserError(
            f"{where} = {shown(value)} must name one of {', '.join(choices[base])}, as in "
            f"{{{next(iter(choices[base]))} = {{...}}}}"
        )
    ((name, fields),) = chosen.items()
    return _choice(base, str(name), fields, where, choices)


def _choice(base: type, name: str, fields: object, where: str, choices: Choices) -> object:
    if name not in choices[base]:
        raise UserError(
            f"{where}: unknown {base.__name__.lower()} {shown(name)} ({did_you_mean(name, choices[base])}"
            f"known: {', '.join(choices[base])})"
        )
    return build(choices[base][name], table(fields, f"{where}.{name}"), f"{where}.{name}", choices)


def table(value: object, where: str) -> Mapping[str, object]:
    """A value that has to be a table of fields; UserError if it is none."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where} = {shown(value)} must be a table of fields")
    return value


def frozen(values: Mapping[str, object]) -> dict[str, object]:
    """Plain values with lists as tuples, so that what is read equals what was written."""
    return {str(k): _frozen(v) for k, v in values.items()}


def _frozen(value: object) -> object:
    if isinstance(value, Mapping):
        return frozen(value)
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value


def unbuild(settings: DataclassInstance, choices: Choices = NO_CHOICES) -> dict[str, object]:
    """Plain values of all fields of a settings object, such that ``build`` gives it back."""
    return {f.name: _unbuilt(getattr(settings, f.name), choices) for f in dataclasses.fields(settings)}


def _unbuilt(value: object, choices: Choices) -> object:
    if named := _named(value, choices):
        return named
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return unbuild(value, choices)
    if isinstance(value, Mapping):
        return {k: _unbuilt(v, choices) for k, v in value.items()}
    if isinstance(value, tuple):
        tables = [_named(v, choices) for v in value]
        if tables and all(tables):
            return {k: v for t in tables for k, v in t.items()}
        return [_unbuilt(v, choices) for v in value]
    return value


def _named(value: object, choices: Choices) -> dict[str, object]:
    """``{name: {fields}}`` of an object whose class is chosen by name; empty for others."""
    for base, names in choices.items():
        if isinstance(value, base) and dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {_name_of(value, names): unbuild(value, choices)}
    return {}


def _name_of(value: object, names: Mapping[str, type]) -> str:
    for name, kind in names.items():
        if type(value) is kind:
            return name
    raise UserError(
        f"{type(value).__name__} has no name in recipes (known: {', '.join(names)}): register it, or train "
        "without recipe"
    )
