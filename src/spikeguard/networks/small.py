"""A small convolutional network for 28x28 and 32x32 images.

Three groups of convolution, batch norm and neurons, average pooling after each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spikeguard.networks.blocks import Blocks
from spikeguard.networks.classifier import Folded
from spikeguard.networks.convolution import Conv
from spikeguard.neurons import Neuron, Spiking


class Stage(nn.Module):
    """Convolution, batch norm, neurons, and average pooling by two if ``pool``.

    ``[T or 1, N, ...] -> [T, N, ...]``.
    """

    def __init__(self, inputs: int, outputs: int, neuron: Neuron, pool: bool, first: bool) -> None:
        super().__init__()
        self.conv, self.norm = (
            Folded(Conv(inputs, outputs, 3, padding=1, bias=False, exact=first)),
            nn.BatchNorm2d(outputs),
        )
        self.fire = Spiking(neuron, pool=pool).after(self)

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        spikes: Tensor = self.fire(self.conv(x), timesteps)
        return spikes


class Stages(nn.Module):
    """Stages one after the other, then flattened features ``[T, N, F]``."""

    def __init__(self, channels: Sequence[int | str], inputs: int, neuron: Neuron) -> None:
        super().__init__()
        self.stages = Blocks()
        for here, after in zip(channels, [*channels[1:], ""], strict=True):
            if isinstance(here, int):
                self.stages.append(Stage(inputs, here, neuron, pool=after == "A", first=not len(self.stages)))
                inputs = here

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        stages: Tensor = self.stages(x, timesteps)
        return stages.flatten(2)


def small(
    in_shape: Sequence[int], neuron: Neuron, width: int = 32, depth: int = 1, gain: float = 1.0
) -> tuple[nn.Module, int]:
    """The body and its number of features.

    ``depth`` stages each of ``width``, twice and four times that, each group halving the image. ``gain``: the
    gains of all batch norms before training.
    """
    channels: list[int | str] = []
    for times in (1, 2, 4):
        channels += [*[times * width] * depth, "A"]
    body = Stages(channels, in_shape[0], neuron)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, gain)
    return body, 4 * width * (in_shape[1] // 8) * (in_shape[2] // 8)


def init_kaiming(module: nn.Module, generator: torch.Generator) -> None:
    """Kaiming normal, fan out, for convolutions and linear layers; biases 0; drawn from the generator."""
    for m in module.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
