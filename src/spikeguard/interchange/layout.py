"""What a layout of published code is, and what both kinds of networks made from one share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spikeguard.errors import UserError
from spikeguard.interchange.layers import Normalize, conv, norm
from spikeguard.interchange.network import ImportedNetwork
from spikeguard.interchange.state_files import State
from spikeguard.interchange.wiring import Wiring
from spikeguard.networks import build
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Neuron, Spiking


@dataclass(frozen=True)
class Settings:
    """What no state holds: steps, normalization, neurons, and the shape of an image (None: the usual one)."""

    in_shape: tuple[int, int, int] | None
    timesteps: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    neuron: Neuron


@dataclass(frozen=True)
class Layout:
    """A network of published code: ``make`` builds it from its state.

    ``renames`` bring all versions of a name to one. ``neuron`` has the constants of that code.
    """

    source: str
    neuron: Neuron
    make: Callable[[State, Settings], Classifier | ImportedNetwork]
    renames: tuple[tuple[str, str], ...] = ()


@dataclass
class Built:
    """A network of ``sg.build`` whose tensors are replaced one by one."""

    net: Classifier
    where: str
    replaced: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(
        network: str,
        state: State,
        settings: Settings,
        in_shape: tuple[int, int, int],
        classes: int,
        options: Mapping[str, Any],
    ) -> Built:
        """The network before anything is replaced."""
        net = build(
            network,
            classes=classes,
            in_shape=settings.in_shape or in_shape,
            timesteps=settings.timesteps,
            neuron=settings.neuron,
            mean=settings.mean,
            std=settings.std,
            **options,
        )
        return Built(net, state.where)

    def put(self, name: str, tensor: Tensor) -> None:
        """Replace the tensor of that name."""
        self.replaced[name] = tensor

    def put_layer(self, name: str, layer: nn.Module) -> None:
        """Replace the tensors of a layer by those of another."""
        for key, value in layer.state_dict().items():
            self.put(f"{name}.{key}", value)

    def finish(self) -> Classifier:
        """The network, in eval mode; UserError unless everything was replaced by tensors of its shape."""
        own = self.net.state_dict()
        for name, tensor in own.items():
            new = self.replaced.pop(name, None)
            if new is None and name not in ("mean", "std"):
                raise UserError(f"{self.where}: nothing for {name}: the network there is another one")
            if new is not None and new.shape != tensor.shape:
                raise UserError(
                    f"{self.where}: the network there is another one: {name} has shape {tuple(new.shape)}, "
                    f"must be {tuple(tensor.shape)}"
                )
            own[name] = tensor if new is None else new
        if self.replaced:
            raise UserError(f"{self.where}: {next(iter(self.replaced))} has no place in the network here")
        self.net.load_state_dict(own)
        return self.net.eval()


class Chain:
    """A network that is put together layer by layer, behind or beside each other."""

    def __init__(self, state: State, settings: Settings) -> None:
        self.state, self.settings = state, settings
        self.layers: dict[str, nn.Module] = {}
        self.inputs: dict[str, tuple[str, ...]] = {}

    def add(self, name: str, layer: nn.Module, *sources: str) -> str:
        """Add a layer behind the sum of ``sources``; returns its name."""
        name = name.replace(".", "_")
        self.layers[name], self.inputs[name] = layer, sources
        return name

    def normalize(self) -> str:
        """The input, normalized."""
        values = [torch.tensor(v, dtype=torch.float32) for v in (self.settings.mean, self.settings.std)]
        return self.add("normalize", Normalize(*values), "image")

    def conv_norm(self, source: str, conv_name: str, norm_name: str, stride: int = 1) -> str:
        """A convolution and its batch norm, by their names in the state."""
        convolved = self.add(conv_name, conv(self.state, conv_name, stride), source)
        return self.add(norm_name, norm(self.state, norm_name), convolved)

    def fire(self, name: str, *sources: str) -> str:
        """A layer of neurons."""
        return self.add(name, Spiking(self.settings.neuron), *sources)

    def finish(self, output: str, in_shape: tuple[int, int, int]) -> ImportedNetwork:
        """The network with that output, in eval mode."""
        shape = self.settings.in_shape or in_shape
        wiring = Wiring("image", self.inputs, (output,))
        net = ImportedNetwork(self.layers, wiring, shape, self.settings.timesteps)
        return net.checked(self.state.where)
