"""Validation where users hand something in: values fit their type hints, or one line says why not.

One mechanism for functions (``checked``) and for classes of settings (``checked_fields``). Limits that a type
cannot express (above 0, at most 1) are checked where they belong, after this.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache, wraps
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from spikeguard.errors import Interrupted, UserError, did_you_mean
from spikeguard.runtime.shown import one_line

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)
LONGEST = 60  # characters of a value in a message
LARGEST = 3.4028234663852886e38
"""The largest number of float32, in which models compute."""
_NAMES: dict[object, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "text",
    type(None): "None",
}


def shown(value: object) -> str:
    """A value as a message shows it, on one line: tensors by type and shape, the rest shortened."""
    kind = type(value).__name__
    try:
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if dtype is not None and isinstance(shape, tuple):
            return f"{'an array' if kind == 'ndarray' else 'a tensor'} of {dtype} and shape {tuple(shape)}"
        text = " ".join(repr(value).split())
    except Exception:  # a class of the user's own may fail to print, too
        return f"a {kind}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... (a {kind})"


def error_line(error: BaseException) -> str:
    """Type and message of an exception, the first line of it, without what a terminal obeys."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # a class of the user's own may fail to print
        lines = []
    return f"{type(error).__name__}: {one_line(lines[0].strip())}" if lines else type(error).__name__


def own_code(what: str, call: Callable[[], R], more: str = "") -> R:
    """What the user's own code returns; whatever it raises is one line, and the cause of it."""
    try:
        return call()
    except (UserError, Interrupted, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # a module that is a script ends the process
        raise UserError(f"{what} ({error_line(error)}){more}") from error


def expected(hint: object) -> str:
    """What a hint allows, in words; a class may say it itself, in ``EXPECTED``."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(expected(a) for a in args))
    if origin is Annotated:
        return expected(args[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if _is_function(origin, hint):
        return "a function"
    if origin is not None:
        kind = "a table" if issubclass(origin, Mapping) else "a list"
        return f"{kind} of {expected(args[-1 if kind == 'a table' else 0])}" if args else kind
    if hint in _NAMES:
        return _NAMES[hint]
    return str(getattr(hint, "EXPECTED", f"a {getattr(hint, '__name__', hint)}"))


def _is_function(origin: object, hint: object) -> bool:
    return origin is Callable or hint is Callable


class _Unfit(Exception):
    """A value that does not fit its hint."""


def fit(hint: object, value: object, where: str, infinite: bool = False) -> object:
    """The value if it fits the hint, numbers of numpy as Python's; else UserError that begins with ``where``.

    ``infinite``: a number may be infinite.
    """
    try:
        return _fit(hint, value, infinite)
    except _Unfit:
        large = isinstance(value, float) and LARGEST < abs(value) < math.inf
        limit = f", at most {LARGEST:.2g}" if large else ""
        raise UserError(f"{where} = {shown(value)} must be {expected(hint)}{limit}") from None


def _fit(hint: object, value: object, infinite: bool) -> object:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is object or isinstance(hint, TypeVar):
        return value
    if origin is Annotated:
        return _fit(args[0], value, infinite)
    if origin in (Union, types.UnionType):
        return _any_of(args, value, infinite)
    if origin is Literal:
        return _need(any(type(a) is type(value) and a == value for a in args), value)
    if _is_function(origin, hint):
        return _need(callable(value), value)
    if origin is not None:
        return _container(origin, args, value, infinite)
    if hint in (int, float):
        return _number(hint, value, infinite)
    if isinstance(hint, type) and getattr(hint, "_is_protocol", False):
        names = [n for n in vars(hint) if n == "__call__" or (n[0] != "_" and callable(vars(hint)[n]))]
        return _need(not isinstance(value, type) and all(hasattr(value, n) for n in names), value)
    return _need(isinstance(value, hint), value) if isinstance(hint, type) else value


def _need(good: bool, value: object) -> object:
    if not good:
        raise _Unfit
    return value


def _any_of(args: tuple[object, ...], value: object, infinite: bool) -> object:
    for arm in args:
        try:
            return _fit(arm, value, infinite)
        except _Unfit:
            continue
    raise _Unfit


def _container(origin: type, args: tuple[object, ...], value: object, infinite: bool) -> object:
    """The values of a list or table fit; a text is no list."""
    if isinstance(value, str) or not isinstance(value, Sequence if origin is list else origin):
        raise _Unfit
    if isinstance(value, Mapping):
        for inner in value.values() if len(args) == 2 else ():
            _fit(args[1], inner, infinite)
    elif isinstance(value, Sequence) and args:
        kinds = args[:1] * len(value) if len(args) == 1 or args[-1] is Ellipsis else args
        _need(len(kinds) == len(value), value)
        for kind, inner in zip(kinds, value, strict=True):
            _fit(kind, inner, infinite)
    return value


def _number(hint: object, value: object, infinite: bool) -> object:
    """Whole numbers or finite ones; truth values are none."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # of numpy, or a tensor without dimensions
    kind: type = numbers.Integral if hint is int else numbers.Real
    _need(isinstance(value, kind) and not isinstance(value, bool), value)
    whole = isinstance(value, numbers.Integral)
    try:
        number = int(value) if whole else float(value)  # type: ignore[call-overload, arg-type]
        size = 0.0 if hint is int else float(number)
    except OverflowError:
        raise _Unfit from None
    _need(abs(size) <= LARGEST or (infinite and math.isinf(size)), value)
    return number if type(value) not in (int, float) else value


@cache
def _hints(of: Hashable) -> dict[str, object]:
    """Type hints by name; none where they cannot be resolved, as of a class inside a user's function."""
    try:
        return get_type_hints(of, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


@cache
def _signature(function: Callable[..., object]) -> inspect.Signature:
    return inspect.signature(function)


def bind(
    function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object], *skip: str
) -> dict[str, object]:
    """The arguments of a call by name, checked against the hints of ``function``, those in ``skip`` aside.

    UserError, also for an argument that is unknown or missing.
    """
    name, signature = function.__name__, _signature(function)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        unknown = [k for k in kwargs if k not in signature.parameters]
        near = did_you_mean(unknown[0], signature.parameters) if unknown else ""
        raise UserError(f"{name}: {error} {f'({near.strip()})' if near else ''}".strip()) from None
    hints = _hints(function)
    for key, value in given.items():
        parameter = signature.parameters[key]
        if (
            key not in skip
            and key in hints
            and parameter.kind
            not in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
            )
        ):
            given[key] = fit(hints[key], value, f"{name}: {key}", parameter.default == math.inf)
    return given


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A public function whose arguments fit their hints; UserError names the first that does not."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = bind(function, args, kwargs)
        rest = [p.name for p in _signature(function).parameters.values() if p.kind is p.VAR_KEYWORD]
        for name in rest:
            given |= given.pop(name, {})  # type: ignore[call-overload]
        return function(**given)  # type: ignore[call-arg, arg-type]

    return call


def checked_fields(cls: C) -> C:
    """A class of settings, to be made a dataclass, whose fields fit their hints before ``__post_init__``.

    UserError names the class and the first field that does not. A number may be infinite where its default
    is.
    """
    own: Callable[[object], None] | None = getattr(cls, "__post_init__", None)

    def post_init(self: object) -> None:
        hints = _hints(type(self))  # type: ignore[arg-type]
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.init and field.name in hints:
                value = getattr(self, field.name)
                where = f"{type(self).__name__}: {field.name}"
                good = fit(hints[field.name], value, where, field.default == math.inf)
                if good is not value:
                    object.__setattr__(self, field.name, good)
        if own is not None:
            own(self)

    cls.__post_init__ = post_init  # type: ignore[attr-defined]
    return cls
