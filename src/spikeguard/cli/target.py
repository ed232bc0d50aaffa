"""Targets of verbs: a run folder, a weights file, or ``package.module:factory`` (the user's code)."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from spikeguard.errors import Interrupted, UserError, nearest

if TYPE_CHECKING:
    from spikeguard.data.images import Images
    from spikeguard.models import Model
    from spikeguard.records.schema import Origin

R = TypeVar("R")
HELP = "a run folder, a weights file or package.module:factory (a function that returns the network)"


@dataclass(frozen=True)
class Target:
    """A network with the images to judge it on, and where both come from."""

    model: Model
    test: Images
    origin: Origin


def find(name: str, images: int | None, data: str | None, data_dir: str | None, device: str | None) -> Target:
    """The network called ``name`` and ``images`` test images (None: all), balanced over the classes.

    UserError says what is missing.
    """
    from torch import nn

    from spikeguard.data.sources import NAMES, load_data
    from spikeguard.records.schema import Origin
    from spikeguard.training.builder import pick_device
    from spikeguard.training.load import load_with_recipe

    place = pick_device(device)
    model: Model
    if ":" in name and not Path(name).exists():
        if data is None:
            raise UserError(
                f"{name} does not say what it was trained on: name its data with --data ({', '.join(NAMES)})"
            )
        model, recipe = _made(name), None
        if isinstance(model, nn.Module):
            model = model.to(place)
    else:
        model, loaded = load_with_recipe(name, str(place))
        data, recipe = data or loaded.data, loaded.values()
    test = load_data(data, data_dir).test
    test = test if images is None or images >= len(test) else test.balanced(images)
    return Target(model, test.to(place), Origin(name, data, data_dir, "test", images, recipe))


def seen_from(folder: Path, origin: Origin) -> Origin:
    """The origin with its target as seen from the folder of a record; a factory is named by its module."""
    if origin.target is None or not Path(origin.target).exists():
        return origin
    return replace(origin, beside=os.path.relpath(Path(origin.target).resolve(), folder.resolve()))


def found_from(folder: Path, origin: Origin) -> str:
    """The name of a record's target: as seen from its folder if it lies there, else as it was typed."""
    from spikeguard.training.checkpoint import WEIGHTS

    if origin.beside is not None:
        path = folder / origin.beside
        if path.is_file() or (path / WEIGHTS).is_file():
            return str(path)
    return origin.target or ""


def folder_of(name: str) -> Path:
    """Where results on a target go: its run folder, the weights' folder, or ``audits/NAME`` here."""
    path = Path(name)
    if path.is_dir():
        return path
    return path.parent if path.is_file() else Path("audits") / name.replace(":", ".")


def _made(name: str) -> Model:
    """The network that the user's factory returns, or that is named itself, in eval mode."""
    from torch import nn

    from spikeguard.border import take_model

    factory = _factory(name)
    if isinstance(factory, nn.Module):
        take_model(factory, name)
        return factory.eval()
    if _needed(factory):
        raise UserError(
            f"{name} needs arguments; it must be a function without any that returns the model (from images "
            "in [0, 1] to logits)"
        )
    model: object = _own_code(f"{name} fails", factory)
    if not callable(model):
        raise UserError(
            f"{name} returned a {type(model).__name__}; it must return the model, a callable from images in "
            "[0, 1] to logits"
        )
    taken = take_model(model, name)
    return taken.eval() if isinstance(taken, nn.Module) else taken


def _needed(factory: Callable[..., object]) -> list[inspect.Parameter]:
    """Parameters without a default; none where Python cannot know them."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (ValueError, TypeError):
        return []
    return [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _own_code(what: str, call: Callable[[], R], more: str = "") -> R:
    """What the user's own code returns; whatever it raises is one line, and the cause of it."""
    from spikeguard.arguments import error_line

    try:
        return call()
    except (UserError, Interrupted, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # a module that is a script ends the process
        raise UserError(f"{what} ({error_line(error)}){more}") from error


def _factory(name: str) -> Callable[..., object]:
    """The function ``package.module:factory``, imported as seen from the current folder."""
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: ModuleType = _own_code(
            f"cannot import {module!r}",
            lambda: importlib.import_module(module),
            f"; {name} must be package.module:factory, seen from this folder",
        )
        factory: object = getattr(found, attribute, None)
    finally:
        sys.path.pop(0)
    if not callable(factory):
        if hasattr(found, attribute):
            raise UserError(
                f"{name} is a {type(factory).__name__}; it must be a function that returns the network"
            )
        near = nearest(attribute, [n for n in vars(found) if not n.startswith("_")])
        hint = f"; did you mean {near!r}?" if near else ""
        raise UserError(f"{module} has no function {attribute!r}{hint}")
    return factory
