"""One line of explanation for every field of a recipe: what its flag is called, takes, defaults to and does.

The explanation of a field is the string below it in its class, where readers of the source and of the
reference find it, too. A class without source (typed into a console) has none.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

Choices = Mapping[type, Mapping[str, type]]


class FieldHelp(NamedTuple):
    """A field of a recipe as the command line shows it.

    ``flag``: its dotted path (``defenses.at.eps``); ``type``: what it takes; ``default``: as a user writes
    it (``8/255``); ``help``: one line.
    """

    flag: str
    type: str
    default: str
    help: str


@dataclasses.dataclass(frozen=True)
class Node:
    """A field, or a class that may be chosen for one: its dotted path, its type and the class it belongs to.

    ``name`` is '' for a class to choose.
    """

    path: str
    hint: object
    owner: type
    name: str
    default: object = None


def walk(kind: type, choices: Choices, prefix: str = "") -> Iterator[Node]:
    """All fields of a dataclass, the inner ones behind the one that holds them."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, path = hints[field.name], prefix + field.name
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield Node(path, hint, kind, field.name, default)
        held = element(hint)
        if held in choices:
            for name, chosen in choices[held].items():
                yield Node(f"{path}.{name}", chosen, chosen, "")
                yield from walk(chosen, choices, f"{path}.{name}.")
        elif dataclasses.is_dataclass(held):
            yield from walk(held, choices, f"{path}.")


def describe(kind: type, choices: Choices) -> list[FieldHelp]:
    """An explanation of every field of ``kind``, in the order of the class."""
    rows = []
    for node in walk(kind, choices):
        held = element(node.hint)
        if node.name and dataclasses.is_dataclass(node.hint):
            continue  # its own fields follow
        if not node.name:
            several = get_origin(_holder(kind, choices, node)) is tuple
            takes, default, text = ("on | off", "off", summary(held)) if several else ("", "", summary(held))
        elif held in choices:
            names = choices[held]
            takes = f"one of {', '.join(names)}"
            default = next((n for n, c in names.items() if type(node.default) is c), "none")
            text = explanation(node.owner, node.name)
        else:
            takes, default = type_text(node.hint), as_written(node.default)
            text = explanation(node.owner, node.name)
        rows.append(FieldHelp(node.path, takes, default, text))
    return rows


def _holder(kind: type, choices: Choices, chosen: Node) -> object:
    """The type of the field that a class is chosen for."""
    path = chosen.path.rpartition(".")[0]
    return next(node.hint for node in walk(kind, choices) if node.path == path)


def element(hint: object) -> type:
    """The type itself, that of a tuple's elements, or the one beside None."""
    if get_origin(hint) is tuple:
        return element(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return element(next(a for a in get_args(hint) if a is not type(None)))
    return hint  # type: ignore[return-value]


_TYPES: dict[object, str] = {int: "whole number", float: "number", bool: "true | false", str: "text"}


def type_text(hint: object) -> str:
    """What a field takes, in words: ``number``, ``true | false``, ``list of numbers``, ``'a' | 'b'``."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin is tuple:
        return f"list of {type_text(args[0])}s".replace("texts", "text")
    if origin in (Union, types.UnionType):
        return " | ".join("none" if a is type(None) else type_text(a) for a in args)
    if origin is dict:
        return "table"
    return _TYPES.get(hint, getattr(hint, "__name__", str(hint)))


def as_written(value: object) -> str:
    """A value as a user writes it.

    >>> from spikeguard.training.describe import as_written
    >>> [as_written(v) for v in (8 / 255, 0.1, None, True, (0.5, 1 / 3))]
    ['8/255', '0.1', 'none', 'true', '[0.5, 1/3]']
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(as_written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k} = {as_written(v)}' for k, v in value.items())}}}"
    return str(value)


def _number(value: float) -> str:
    """The shortest of the decimal, so many 255ths, and a small fraction."""
    if len(repr(value)) <= 8:
        return repr(value)
    if (levels := round(value * 255)) / 255 == value:
        return f"{levels}/255"
    small = Fraction(value).limit_denominator(1000)
    return str(small) if float(small) == value else repr(value)


def summary(kind: type) -> str:
    """The first sentence of a class's docstring, on one line."""
    text = " ".join((inspect.getdoc(kind) or "").split())
    return text.partition(". ")[0].rstrip(".") + "." if text else ""


def explanation(kind: type, name: str) -> str:
    """The string below a field in the class that declares it, or below the one it overrides; else ''."""
    return next((text for base in kind.__mro__ if (text := _strings(base).get(name))), "")


@cache
def _strings(kind: type) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }
