"""From a recipe to its network, device and images."""

from __future__ import annotations

import torch

from spikeguard.data.images import Dataset, Images
from spikeguard.errors import UserError
from spikeguard.networks import build
from spikeguard.networks.classifier import Classifier
from spikeguard.training.recipe import Recipe


def pick_device(name: str | None) -> torch.device:
    """The device of that name, else the GPU if there is one; UserError if torch does not know or have it."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]})") from error
    return device


def make_network(recipe: Recipe, data: Dataset) -> Classifier:
    """The recipe's network, untrained, with its defenses prepared."""
    net = build(
        recipe.network,
        classes=len(data.classes),
        in_shape=data.in_shape,
        timesteps=recipe.timesteps,
        neuron=recipe.neuron,
        mean=data.mean,
        std=data.std,
        seed=recipe.seed,
        **recipe.options,
    )
    for defense in recipe.defenses:
        defense.prepare(net)
    net.adaptive = tuple(attack for d in recipe.defenses for attack in d.adaptive_attacks())
    return net.prefer(
        recipe.channels_last, torch.bfloat16 if recipe.precision == "bfloat16" else None, recipe.checkpoint
    )


def training_parts(recipe: Recipe, data: Dataset) -> tuple[Images, Images]:
    """Training and validation images of a recipe."""
    chosen = data.train if recipe.train_images is None else data.train.balanced(recipe.train_images)
    return chosen.split(recipe.validation)
