"""``register``: things of the user's own, known by name wherever the package's own are."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from spikeguard.arguments import error_line, shown
from spikeguard.attacks import ATTACKS, Attack
from spikeguard.data.images import Dataset
from spikeguard.data.sources import DATA, Source
from spikeguard.defenses import DEFENSES, Defense
from spikeguard.errors import UserError
from spikeguard.networks import NETWORKS
from spikeguard.registry import Registry
from spikeguard.surrogates import Surrogate
from spikeguard.training.describe import as_written, explanation
from spikeguard.training.settings import SURROGATES

T = TypeVar("T")
REGISTRIES: tuple[Registry[Any], ...] = (DEFENSES, ATTACKS, NETWORKS, SURROGATES, DATA)
KINDS = (
    "a class of sg.surrogates.Surrogate or sg.defenses.Defense, an attack (model, x, y, threat, *, ...), a "
    "network (in_shape, neuron, ...), a data set (a Dataset, a Source, or a function (folder) that returns a "
    "Dataset)"
)


def register(thing: T, name: str | None = None) -> T:
    """Make a surrogate, defense, attack, network or data set of your own known by a name; returns it.

    Recipes, flags, records and ``sg.load`` then take it as they take the package's own. What it is follows
    from its class, or from the first arguments of a function: ``(model, x, y, threat)`` is an attack,
    ``(in_shape, neuron)`` a network, ``(folder)`` a data set. The default name is that of the class or
    function in lower case with underscores. Raises UserError if the name is taken, or the thing cannot be
    used.

    >>> @sg.register
    ... def blank(folder):
    ...     images = sg.data.Images.of(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.arange(20) % 2)
    ...     return sg.data.Dataset("blank", images, images, ("a", "b"), mean=(0.5,), std=(0.5,))
    >>> len(sg.load_data("blank").train)
    20
    """
    if isinstance(thing, type) and issubclass(thing, Surrogate):
        SURROGATES.add(name or _snake(thing.__name__), _surrogate(thing), thing)
    elif isinstance(thing, type) and issubclass(thing, Defense):
        DEFENSES.add(name or _snake(thing.__name__), _frozen(thing), thing)
    elif isinstance(thing, (Dataset, Source)):
        _data(thing, name)
    elif isinstance(thing, Attack):
        ATTACKS.add(name or thing.name, thing, thing.function)
    elif inspect.isfunction(thing):
        _function(thing, name)
    else:
        raise UserError(f"register: {shown(thing)} must be {KINDS}")
    return thing


def _function(thing: Callable[..., object], name: str | None) -> None:
    """Register a function by the names of its first arguments."""
    parameters = inspect.signature(thing).parameters
    names, called = tuple(parameters), name or thing.__name__.lower()
    if names[:4] == ("model", "x", "y", "threat"):
        _settings_with_defaults(called, parameters, 4)
        if positional := [n for n, p in list(parameters.items())[4:] if p.kind is not p.KEYWORD_ONLY]:
            raise UserError(f"register: {called}: its setting {positional[0]!r} must stand after a *")
        ATTACKS.add(called, Attack(thing), thing)  # type: ignore[arg-type]
    elif names[:2] == ("in_shape", "neuron"):
        _settings_with_defaults(called, parameters, 2)
        NETWORKS.add(called, thing, thing)  # type: ignore[arg-type]
    elif names == ("folder",):
        DATA.add(called, thing, thing)  # type: ignore[arg-type]
    else:
        raise UserError(f"register: {called}({', '.join(names)}) must be {KINDS}")


def _settings_with_defaults(name: str, parameters: Mapping[str, inspect.Parameter], first: int) -> None:
    for parameter in list(parameters.values())[first:]:
        if parameter.default is parameter.empty:
            raise UserError(f"register: {name}: its setting {parameter.name!r} must have a default")


def _data(thing: Dataset | Source, name: str | None) -> None:
    if isinstance(thing, Source):
        if name is None:
            raise UserError("register: a Source has no name of its own; give name=")
        DATA.add(name, thing, thing)
        return
    held = thing.checked()

    def read(folder: Path | None) -> Dataset:
        return held

    DATA.add(name or held.name, read, thing)


def _frozen(kind: type[T]) -> type[T]:
    """The class; UserError unless it is a frozen dataclass itself, so that a recipe can hold its fields."""
    parameters = vars(kind).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        raise UserError(f"register: {kind.__name__} must be a frozen dataclass: @dataclass(frozen=True)")
    return kind


def _surrogate(kind: type[Surrogate]) -> type[Surrogate]:
    """The class; UserError if it is no surrogate of any shape."""
    if lacking := [f.name for f in dataclasses.fields(_frozen(kind)) if _has_no_default(f)]:  # type: ignore[arg-type]
        raise UserError(f"register: {kind.__name__}: its field {lacking[0]!r} must have a default")
    u = torch.linspace(-2.0, 2.0, 9, dtype=torch.float32, device="cpu").view(3, 3)
    try:
        slope = kind().derivative(u)
        fits = slope.shape == u.shape and bool(slope.isfinite().all())
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"register: {kind.__name__} does not work: {error_line(error)}") from error
    if not fits:
        raise UserError(f"register: {kind.__name__}: derivative(u) must be finite and of the shape of u")
    return kind


def _has_no_default(field: dataclasses.Field[object]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _snake(name: str) -> str:
    """``MyDefense`` as ``my_defense``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def documented(thing: object) -> tuple[list[str], list[str]]:
    """What a thing says of itself: paragraphs without examples, and ``setting = default: help``."""
    held = thing.function if isinstance(thing, Attack) else thing
    text = inspect.cleandoc(held.__doc__ or "") if callable(held) else ""
    if isinstance(held, Source):
        text = f"{len(held.classes)} classes: {', '.join(held.classes)}."
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n") if not p.lstrip().startswith(">>>")]
    if isinstance(held, type):
        rows = [
            f"{f.name} = {as_written(f.default)}: {explanation(held, f.name)}"
            for f in dataclasses.fields(held)
        ]
        return [p.replace("`", "") for p in paragraphs], [row.rstrip(": ") for row in rows]
    parameters = inspect.signature(held).parameters.values() if callable(held) else ()
    rows = [f"{p.name} = {as_written(p.default)}" for p in parameters if p.default is not p.empty]
    return [p.replace("`", "") for p in paragraphs], rows
