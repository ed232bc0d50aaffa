"""A training, in full: everything that decides its result is a field here."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spikeguard.arguments import checked_fields
from spikeguard.defenses import Defense, compose
from spikeguard.errors import UserError
from spikeguard.neurons import Neuron
from spikeguard.records.build import shown
from spikeguard.records.files import read_text
from spikeguard.training.settings import build, read, unbuild

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MOST = {
    "timesteps": 10_000,
    "epochs": 10**6,
    "batch_size": 10**6,
    "steps": 1000,
    "late_steps": 1000,
    "iterations": 1000,
    "levels": 2**16,
    "images": 10**6,
}
"""Highest values of whole numbers in a recipe, by field: a training beyond them would not end."""


@dataclass(frozen=True)
@checked_fields
class Recipe:
    """Settings of one training: data, network, neurons, defenses, optimizer.

    ``loss`` 'mean' is cross-entropy of the logits averaged over time, 'per_step' its average over the steps'
    own logits, 'tet' 0.999 of the latter and 0.001 of the logits' mean squared distance from 1 (Deng et al.,
    ICLR 2022). ``label_smoothing`` mixes its targets with the uniform one (Szegedy et al., CVPR 2016);
    adversaries are crafted without. The learning rate rises linearly over ``warmup`` (a share of the
    training) to ``lr`` and falls to 0: by cosine, or in a line for ``schedule`` 'one_cycle' (Smith and Topin,
    2017); SGD with Nesterov momentum, weight decay on matrices only. ``precision`` 'bfloat16' is autocast;
    potentials stay float32. 'auto' picks by machine and network size, and the record holds the pick.
    ``checkpoint`` keeps only what lies between blocks and computes the rest again in the backward pass: less
    memory, same bits. UserError names a field that is out of range.

    >>> recipe = sg.Recipe(network="vgg11", defenses=(sg.AT(eps=8 / 255), sg.TGO()))
    >>> sg.Recipe.of(recipe.values()) == recipe
    True
    """

    name: str = "custom"
    """Name of the network and of its folder under runs/."""
    data: str = "embedded"
    """Data set: a name that spikeguard knows, a folder of images or an .npz file."""
    train_images: int | None = None
    """Use a balanced part of the training images; none uses all."""
    validation: float = 0.1
    """Share of the training images held back for validation."""
    augment: bool = True
    """Shift training images by up to four pixels at random and mirror half of them."""
    network: str = "small"
    """Network: small, vgg11 or wrn16."""
    options: dict[str, object] = field(default_factory=dict)
    """Arguments of the network, such as {width = 16}."""
    timesteps: int = 4
    """Time steps of the network."""
    neuron: Neuron = field(default_factory=Neuron)
    """Settings of the neurons."""
    defenses: tuple[Defense, ...] = ()
    """Defenses, which act in this order."""
    loss: Literal["mean", "per_step", "tet"] = "mean"
    """Cross-entropy of the mean logits, of every step's logits, or TET."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 128
    """Images of a training step."""
    lr: float = 0.1
    """Highest learning rate."""
    schedule: Literal["cosine", "one_cycle"] = "cosine"
    """How the learning rate falls after the warm-up: by cosine or in a line."""
    warmup: float = 0.2
    """Share of the training over which the learning rate rises."""
    momentum: float = 0.9
    """Nesterov momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay of weight matrices."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Precision of the layers between neurons; auto picks by machine and network size."""
    channels_last: bool = True
    """Keep images and activations in memory with channels last."""
    checkpoint: bool = False
    """Keep only what lies between blocks and compute the rest again: less memory, same bits."""
    seed: int = 0
    """Seed of weights, batches and noise."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        for name, low in (("timesteps", 1), ("epochs", 1), ("batch_size", 2)):
            if getattr(self, name) < low:
                raise UserError(f"recipe: {name} = {getattr(self, name)} must be at least {low}")
        _check_range(self, "recipe")
        for defense in self.defenses:
            _check_range(defense, f"recipe: {type(defense).__name__}")
        for name, allowed in (
            ("loss", ("mean", "per_step", "tet")),
            ("schedule", ("cosine", "one_cycle")),
            ("precision", ("float32", "bfloat16", "auto")),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"recipe: {name} = {getattr(self, name)!r} must be one of {', '.join(allowed)}"
                )
        compose(*self.defenses)
        if not self.validation and (chooses := [d for d in self.defenses if d.chooses]):
            raise UserError(f"recipe: validation = 0 leaves {type(chooses[0]).__name__} nothing to choose by")
        for name in ("validation", "warmup", "momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"recipe: {name} = {getattr(self, name)} must lie in [0, 1)")
        if not self.lr > 0 or not self.weight_decay >= 0:
            raise UserError(
                f"recipe: lr = {self.lr} must be above 0 and weight_decay = {self.weight_decay} at least 0"
            )

    @staticmethod
    def of(values: Mapping[str, object], where: str = "recipe") -> Recipe:
        """From plain values; UserError names a wrong field."""
        return build(Recipe, read(Recipe, values), where)

    def values(self) -> dict[str, object]:
        """Plain values; ``Recipe.of`` gives the same recipe back."""
        plain = unbuild(self)
        plain["defenses"] = plain["defenses"] or {}
        return plain


def _check_name(name: str) -> None:
    """UserError unless the name is one of a folder inside another."""
    parts = Path(name).parts
    if not name.strip() or "\0" in name or Path(name).is_absolute() or ".." in parts or len(name) > 200:
        raise UserError(
            f"recipe: name = {shown(name)} must be the name of a folder under runs/: at most 200 characters, "
            "neither empty, nor absolute, nor with '..'"
        )


def _check_range(settings: DataclassInstance, where: str) -> None:
    """UserError on a whole number beyond ``MOST`` and on a number that is not finite."""
    for setting in fields(settings):
        value, most = getattr(settings, setting.name), MOST.get(setting.name)
        if most is not None and isinstance(value, int) and value > most:
            raise UserError(f"{where}: {setting.name} = {shown(value)} must be at most {most}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {setting.name} = {value} must be a finite number")


def read_toml(path: Path) -> dict[str, object]:
    """Plain values of a recipe file; UserError if it is missing, not a regular file or no TOML."""
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise UserError(f"{path} is not valid TOML: nested too deeply") from error
    except ValueError as error:  # of tomllib, or a number of thousands of digits
        raise UserError(f"{path} is not valid TOML: {error}") from error
