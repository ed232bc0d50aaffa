"""Networks by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import torch
from torch import nn

from spikeguard.arguments import checked, fit, shown
from spikeguard.errors import UserError
from spikeguard.errors import unknown as unknown_name
from spikeguard.networks.classifier import Classifier
from spikeguard.networks.small import init_kaiming, small
from spikeguard.networks.vgg import vgg11
from spikeguard.networks.wrn import wrn16
from spikeguard.neurons import Neuron
from spikeguard.random import draws
from spikeguard.registry import Registry
from spikeguard.runtime.float32 import float32_by_default

LARGEST, DEEPEST = 2**16, 100
"""What the options of a network may be at most."""
CHECKED, MOST_PARAMETERS = 1024, 2**31
MOST_CLASSES = 10**5
Maker = Callable[..., tuple[nn.Module, int]]
"""From the shape of an image, settings of neurons and options to a body and its number of features."""
NETWORKS: Registry[Maker] = Registry("network", {"small": small, "vgg11": vgg11, "wrn16": wrn16})


@checked
@float32_by_default()
def build(
    network: str,
    *,
    classes: int,
    in_shape: Sequence[int],
    timesteps: int = 4,
    neuron: Neuron | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    encoding: str = "direct",
    seed: int = 0,
    **options: Any,
) -> Classifier:
    """Build a network ('small', 'vgg11', 'wrn16') for images ``[N, *in_shape]`` in [0, 1].

    The network normalizes by ``mean`` and ``std`` itself. ``options`` are the network's own (small:
    ``width``, ``depth``; vgg11: ``hidden``; wrn16: ``widen``). Weights are drawn from ``seed``. In a loop of
    your own it trains in float32, or in the precision of an open ``torch.autocast``. Raises UserError on an
    unknown name or option, ``timesteps`` below 1, or a shape that is not (C, H, W) with H and W at least 8.

    >>> net = sg.build("small", classes=10, in_shape=(3, 16, 16), timesteps=4, width=4)
    >>> net(torch.rand(2, 3, 16, 16)).shape, net(torch.rand(2, 3, 16, 16), per_step=True).shape
    (torch.Size([2, 10]), torch.Size([4, 2, 10]))
    """
    if network not in NETWORKS:
        raise unknown_name("network", network, NETWORKS, "build: ")
    if encoding != "direct":
        raise UserError(f"build: unknown encoding {encoding!r} (known: direct)")
    if timesteps < 1:
        raise UserError(f"build: timesteps = {timesteps} must be at least 1")
    if not 2 <= classes <= MOST_CLASSES:
        raise UserError(f"build: classes = {classes} must be at least 2 and at most {MOST_CLASSES}")
    if len(in_shape) != 3 or min(in_shape) < 1 or min(in_shape[1:]) < 8:
        raise UserError(
            f"build: in_shape = {tuple(in_shape)} must be (channels, height, width), at least 8 pixels a side"
        )
    make = NETWORKS[network]
    takes = inspect.signature(make).parameters
    allowed = list(takes)[2:]
    if unknown := sorted(set(options) - set(allowed)):
        raise UserError(f"build: {network} has no option {unknown[0]!r} (known: {', '.join(allowed)})")
    if network in NETWORKS.added:
        options = _fitting(network, make, options)
    else:
        _check_options(network, make, options)
        _check_size(network, make, in_shape, options)
    body, features = _body(network, make(in_shape, neuron or Neuron(), **options))
    net = Classifier(body, nn.Linear(features, classes), in_shape, timesteps, mean, std)
    init_kaiming(net, draws.generator(seed, "weights"))
    return net.prefer(channels_last=True)


def _check_size(
    network: str, make: Callable[..., tuple[nn.Module, int]], in_shape: Sequence[int], options: dict[str, Any]
) -> None:
    """UserError if the network would never be finished or not fit into memory. It takes no memory itself."""
    for name, value in options.items():
        most = DEEPEST if name == "depth" else LARGEST
        if max(value if isinstance(value, (tuple, list)) else (value,)) > most:
            raise UserError(f"build: {network}: {name} must be at most {most}")
    if max(in_shape) > LARGEST:
        raise UserError(f"build: in_shape must be at most {LARGEST} each")
    if not options or (network == "small" and options.get("width", 32) * options.get("depth", 1) <= CHECKED):
        return
    with torch.device("meta"):
        body, _ = make(in_shape, Neuron(), **options)
    if (count := sum(p.numel() for p in body.parameters())) > MOST_PARAMETERS:
        raise UserError(
            f"build: {network} would have {count:,} parameters; at most {MOST_PARAMETERS:,} are allowed"
        )


def _check_options(network: str, make: Maker, options: dict[str, Any]) -> None:
    """UserError unless options of the package's own networks are positive numbers, whole unless shares."""
    takes = inspect.signature(make).parameters
    for name, value in options.items():
        if isinstance(takes[name].default, float):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise UserError(f"build: {network}: {name} = {value!r} must be a positive number")
            continue
        sizes = value if isinstance(value, (tuple, list)) else (value,)
        if not sizes or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in sizes):
            raise UserError(f"build: {network}: {name} = {value!r} must be whole numbers of at least 1")


def _fitting(network: str, make: Maker, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a registered network; UserError for one that does not fit its type hint."""
    hints = get_type_hints(make)
    return {k: fit(hints.get(k, object), v, f"build: {network}: {k}") for k, v in options.items()}


def _body(network: str, made: object) -> tuple[nn.Module, int]:
    """What a function of a network has to return; UserError for anything else."""
    if isinstance(made, tuple) and len(made) == 2:
        body, features = made
        if isinstance(body, nn.Module) and isinstance(features, int) and features > 0:
            return body, features
    raise UserError(
        f"build: {network} returned {shown(made)}, must return a module and its number of features"
    )
