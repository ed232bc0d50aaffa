"""Targets of verbs: a run folder, a weights file, or ``package.module:factory`` (the user's code)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spikeguard.errors import UserError

if TYPE_CHECKING:
    from spikeguard.data.images import Images
    from spikeguard.models import Model
    from spikeguard.records.schema import Origin

HELP = (
    "a run folder, a weights file, a network of the zoo, or package.module:factory (a function that returns "
    "the network)"
)


@dataclass(frozen=True)
class Target:
    """A network with the images to judge it on, and where both come from."""

    model: Model
    test: Images
    origin: Origin


def find(
    name: str,
    images: int | None,
    data: str | None,
    data_dir: str | None,
    device: str | None,
    weights: str | None = None,
) -> Target:
    """The network called ``name`` and ``images`` test images (None: all), balanced over the classes.

    ``weights``: a file for a factory's network. UserError says what is missing.
    """
    from torch import nn

    from spikeguard.cli.weights import put_own_weights
    from spikeguard.records.schema import Origin
    from spikeguard.training.builder import pick_device
    from spikeguard.training.load import load_network

    place, digest = pick_device(device), None
    model: Model
    if ":" in name and not Path(name).exists():
        if data is None and data_dir is None:  # before code of the user's runs
            raise _without_data(name)
        loaded, model = None, _made(name)
        if weights is not None:
            put_own_weights(model, Path(weights))
        if isinstance(model, nn.Module):
            model = model.to(place)
    else:
        if weights is not None:
            raise UserError(f"--weights is for a package.module:factory; {name} has weights of its own")
        loaded = load_network(name, str(place), here=True)
        model = loaded.net
    if loaded is None or loaded.recipe is None or loaded.shape is None:
        data, recipe = data or data_dir, None
    else:
        digest = None if data else loaded.shape.digest
        data, recipe = data or loaded.recipe.data, loaded.recipe.values()
    if data is None:
        raise _without_data(name)
    data, data_dir, test = _test_images(data, data_dir, digest, images)
    file = None if weights is None else str(Path(weights).resolve())
    origin = Origin(name, data, data_dir, "test", images, recipe, weights=file)
    return Target(model, test.to(place), origin)


def _without_data(name: str) -> UserError:
    from spikeguard.data.sources import DATA

    return UserError(
        f"{name} does not say what it was trained on: name its data with --data ({', '.join(DATA)}, "
        "a folder of images, an .npz file)"
    )


def _test_images(
    data: str, data_dir: str | None, digest: str | None, images: int | None
) -> tuple[str, str | None, Images]:
    """Name and folder of the data as a record keeps them, and the test images.

    Images of the user's own: ``data_dir`` says where they are now; ``digest`` what they have to be.
    """
    from spikeguard.data.own import is_own
    from spikeguard.data.sources import DATA, load_data

    if data in DATA or not is_own(data):
        test = load_data(data, data_dir).test
        return data, data_dir, test if images is None or images >= len(test) else test.balanced(images)
    path = str(Path(data_dir or data).resolve())
    loaded = load_data(path)
    if digest is not None and loaded.digest != digest:
        raise UserError(
            f"{path} holds other images than the network was trained on: name those with --data-dir, or "
            "others with --data"
        )
    return path, None, loaded.test if images is None else loaded.test.at_most(images)


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

    from spikeguard.arguments import own_code
    from spikeguard.border import take_model
    from spikeguard.models import put_in_eval
    from spikeguard.training.factory import import_factory

    factory = import_factory(name, here=True)
    if isinstance(factory, nn.Module):
        take_model(factory, name)
        put_in_eval(factory)
        return factory
    if _needed(factory):
        raise UserError(
            f"{name} needs arguments; it must be a function without any that returns the model (from images "
            "in [0, 1] to logits)"
        )
    model: object = own_code(f"{name} fails", factory)
    if not callable(model):
        raise UserError(
            f"{name} returned a {type(model).__name__}; it must return the model, a callable from images in "
            "[0, 1] to logits"
        )
    taken = take_model(model, name)
    if isinstance(taken, nn.Module):
        put_in_eval(taken)
    return taken


def _needed(factory: Callable[..., object]) -> list[inspect.Parameter]:
    """Parameters without a default; none where Python cannot know them."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (ValueError, TypeError):
        return []
    return [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
