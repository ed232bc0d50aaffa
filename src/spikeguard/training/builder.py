"""From a recipe to its device, precision, network and images."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from spikeguard.data.images import Dataset, Images
from spikeguard.errors import UserError
from spikeguard.networks import build
from spikeguard.networks.classifier import Classifier
from spikeguard.runtime.float32 import float32_by_default
from spikeguard.runtime.machine import machine
from spikeguard.training.recipe import Recipe

LARGE = 10**6  # parameters; smaller networks are not faster in bfloat16, measured where it is native
DEVICES = ("cpu", "cuda", "mps", "xpu")  # others, such as meta, hold no values
NATIVE_BFLOAT16 = {"amx_bf16", "avx512_bf16"}  # with avx512f alone torch emulates it, several times slower


def pick_device(name: str | None) -> torch.device:
    """The device of that name, else the GPU if there is one; UserError if torch does not know or have it."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type not in DEVICES:
            raise RuntimeError(f"known: {', '.join(DEVICES)}")
        torch.empty(0, dtype=torch.float32, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]})") from error
    return device


def pick_precision(net: nn.Module, device: torch.device) -> Literal["float32", "bfloat16"]:
    """What ``precision = "auto"`` means: bfloat16 for a large network where the device computes it natively.

    A function of the network's size and the machine, never of a timing, so that a training repeats.
    """
    if sum(p.numel() for p in net.parameters()) < LARGE:
        return "float32"
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    return "bfloat16" if NATIVE_BFLOAT16 & set(machine().instructions) else "float32"


def settled(recipe: Recipe, data: Dataset, device: torch.device) -> Recipe:
    """The recipe with the precision that 'auto' picks here; records, checkpoints and weights hold it."""
    if recipe.precision != "auto":
        return recipe
    return replace(recipe, precision=pick_precision(_network(recipe, data), device))


@float32_by_default()
def make_network(recipe: Recipe, data: Dataset) -> Classifier:
    """The recipe's network, untrained, with its defenses prepared."""
    net = _network(recipe, data)
    for defense in recipe.defenses:
        defense.prepare(net)
    net.adaptive = tuple(attack for d in recipe.defenses for attack in d.adaptive_attacks())
    precision = pick_precision(net, torch.device("cpu")) if recipe.precision == "auto" else recipe.precision
    autocast = torch.bfloat16 if precision == "bfloat16" else None
    return net.prefer(recipe.channels_last, autocast, recipe.checkpoint)


def _network(recipe: Recipe, data: Dataset) -> Classifier:
    if taken := sorted(set(recipe.options) & set(inspect.signature(build).parameters)):
        raise UserError(f"recipe: {recipe.network} has no option {taken[0]!r}")
    return build(
        recipe.network,
        classes=len(data.classes),
        in_shape=data.in_shape,
        timesteps=recipe.timesteps,
        neuron=recipe.neuron,
        mean=data.mean,
        std=data.std,
        encoding="direct",
        seed=recipe.seed,
        **recipe.options,
    )


def training_parts(recipe: Recipe, data: Dataset) -> tuple[Images, Images]:
    """Training and validation images of a recipe."""
    chosen = data.train if recipe.train_images is None else data.train.balanced(recipe.train_images)
    return chosen.split(recipe.validation)
