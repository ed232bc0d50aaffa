"""Networks from disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from spikeguard import zoo
from spikeguard.arguments import checked
from spikeguard.data.images import Dataset, Images
from spikeguard.errors import UserError
from spikeguard.networks.classifier import Classifier
from spikeguard.records.build import build, table
from spikeguard.records.plain import Json
from spikeguard.records.training import TrainingRecord
from spikeguard.runtime.float32 import float32_by_default
from spikeguard.training.builder import make_network, pick_device
from spikeguard.training.checkpoint import (
    DIGEST,
    RECORD,
    STATE,
    WEIGHTS,
    DataShape,
    load_tensors,
    put_weights,
)
from spikeguard.training.factory import FACTORY, Factory
from spikeguard.training.provenance import check_installed
from spikeguard.training.recipe import Recipe


@checked
def load(target: str | Path, device: str = "cpu") -> nn.Module:
    """Load a network in eval mode, with its defenses prepared: of a run folder, a weights file or the zoo.

    Networks of the zoo (``spikeguard zoo``) come with the package. A file that ``sg.save`` wrote names the
    function that builds the network: that is imported and called. Raises UserError if there is none, if the
    run is unfinished, or if the weights are another network's.

    >>> recipe = sg.Recipe(train_images=40, validation=0.0, epochs=1, batch_size=10, options={"width": 2})
    >>> run = sg.train(recipe, out="first")
    >>> net = sg.load("first")
    >>> images = sg.load_data("embedded").test.balanced(10).pixels()
    >>> torch.equal(net(images), run.net(images))
    True
    """
    return load_network(target, device).net


@dataclass(frozen=True)
class Loaded:
    """A network from disk; ``recipe`` and ``shape`` of its data are None if ``sg.save`` wrote it."""

    net: nn.Module
    recipe: Recipe | None = None
    shape: DataShape | None = None


def load_network(target: str | Path, device: str = "cpu", here: bool = False) -> Loaded:
    """As ``load``, with what is known of its training.

    ``here``: the module of a factory is searched in the current folder first, as the command line does.
    """
    path = _weights(target)
    tensors, metadata = load_tensors(path)
    if FACTORY not in metadata:
        return Loaded(*_by_recipe(path, tensors, metadata, device))
    own = Factory.of(metadata[FACTORY], f"{path}: {FACTORY}").network(here)
    put_weights(own, tensors, path)
    return Loaded(own.to(pick_device(device)).eval())


def load_classifier(target: str | Path, device: str = "cpu") -> Classifier:
    """As ``load``, of a network that ``sg.train`` has made."""
    return load_with_recipe(target, device)[0]


def load_with_recipe(target: str | Path, device: str = "cpu") -> tuple[Classifier, Recipe]:
    """As ``load_classifier``, and the recipe it was trained by."""
    path = _weights(target)
    tensors, metadata = load_tensors(path)
    if FACTORY in metadata:
        raise UserError(f"{path} is a network of your own (sg.save), without a recipe: load it with sg.load")
    return _by_recipe(path, tensors, metadata, device)[:2]


@float32_by_default()
def _by_recipe(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Json], device: str
) -> tuple[Classifier, Recipe, DataShape]:
    if not {"recipe", "data"} <= set(metadata):
        raise UserError(f"{path} was not written by spikeguard train: it names no recipe")
    check_installed(metadata.get("plugins"), str(path))
    recipe = Recipe.of(table(metadata["recipe"], f"{path}: recipe"), str(path))
    if (beside := path.with_name(RECORD)).is_file() and path.name == WEIGHTS:
        _check_record(TrainingRecord.read(beside), metadata.get(DIGEST), recipe, path)
    shape = build(DataShape, table(metadata["data"], f"{path}: data"), f"{path}: data")
    images = Images.of(
        torch.zeros(1, *shape.in_shape, dtype=torch.uint8, device="cpu"),
        torch.zeros(1, dtype=torch.int64, device="cpu"),
    )
    like = Dataset(recipe.data, images, images, shape.classes, shape.mean, shape.std)
    net = make_network(recipe, like)
    put_weights(net, tensors, path)
    return net.to(pick_device(device)).eval(), recipe, shape


def _weights(target: str | Path) -> Path:
    """The file of weights, of the zoo where no file has that name; UserError if there is none, or if the run
    is unfinished."""
    path = Path(target)
    if not path.exists() and str(target) in zoo.entries():
        path = zoo.folder(str(target))
    if path.is_dir():
        if not (path / WEIGHTS).exists() and (path / STATE).exists():
            raise UserError(
                f"{path} holds an unfinished run; finish it with: spikeguard train --resume --out {path}"
            )
        path = path / WEIGHTS
    if not path.is_file():
        raise UserError(
            f"no network {str(target)!r}: neither a run folder nor a weights file nor one of the "
            f"zoo ({', '.join(zoo.entries())}); train one: spikeguard train tgo --name first"
        )
    return path


def _check_record(record: TrainingRecord, digest: object, recipe: Recipe, path: Path) -> None:
    """UserError if the record beside a file of weights is about another network."""
    if record.weights is not None:
        same = record.weights == digest
    else:  # of version 0.1, which kept no digest
        same = Recipe.of(record.recipe, str(path.with_name(RECORD))) == recipe
    if not same:
        raise UserError(f"{path} holds the weights of another run than {path.with_name(RECORD)}")
