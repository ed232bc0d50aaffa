"""What a verb is pointed at.

A run folder, a weights file, or ``package.module:factory``, which runs the user's own code.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeguard.errors import UserError

if TYPE_CHECKING:
    from spikeguard.data.images import Images


@dataclass(frozen=True)
class Target:
    """A model with the images to judge it on, and what a record says of them."""

    model: Any
    test: Images
    about: dict[str, Any]


def find(name: str, images: int | None, data: str | None, data_dir: str | None, device: str | None) -> Target:
    """The model called ``name`` and ``images`` test images (None: all), balanced over the classes.

    UserError says what is missing.
    """
    from spikeguard.data.sources import load_data
    from spikeguard.training.builder import pick_device
    from spikeguard.training.load import load_with_recipe

    place = pick_device(device)
    if ":" in name and not Path(name).exists():
        if data is None:
            raise UserError(
                f"{name} does not say what it was trained on: name its data with --data (embedded, "
                "fashion-mnist, cifar10, cifar100)"
            )
        model, about = _made(name), dict[str, Any](target=name, data=data)
        if hasattr(model, "to"):
            model = model.to(place)
    else:
        model, recipe = load_with_recipe(name, str(place))
        about = {"target": str(name), "recipe": recipe.values(), "data": data or recipe.data}
    test = load_data(about["data"], data_dir).test
    test = test if images is None or images >= len(test) else test.balanced(images)
    return Target(model, test.to(place), {**about, "split": "test"})


def _made(name: str) -> Any:
    module, _, factory = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), factory, None)
    except ImportError as error:
        raise UserError(
            f"cannot import {module!r} ({error}); {name} must be package.module:factory, seen from this "
            "folder"
        ) from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise UserError(f"{module} has no function {factory!r}")
    if [
        p
        for p in inspect.signature(found).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]:
        raise UserError(
            f"{name} needs arguments; it must be a function without any that returns the model (from images "
            "in [0, 1] to logits)"
        )
    model = found()
    if not callable(model):
        raise UserError(
            f"{name} returned a {type(model).__name__}; it must return the model, a callable from images in "
            "[0, 1] to logits"
        )
    return model.eval() if hasattr(model, "eval") else model
