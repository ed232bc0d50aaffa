"""WRN-16-4 with pre-activation (batch norm, neurons, convolution) and learned convex joins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spikeguard.networks.blocks import Blocks
from spikeguard.networks.classifier import Folded
from spikeguard.networks.convolution import Conv
from spikeguard.networks.join import join
from spikeguard.neurons import Neuron, Spiking


class ConvexCombination(nn.Module):
    """``a x + b y`` with learned weights, 1/2 each at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), 0.5, dtype=torch.float32))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return join(x, y, self.weight)


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3, exact: bool = False) -> nn.Conv2d:
    return Conv(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False, exact=exact)


class Block(nn.Module):
    """Two pre-activated convolutions beside a shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution of the spikes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, neuron: Neuron) -> None:
        super().__init__()
        self.norm1, self.fire1 = nn.BatchNorm2d(inputs), Spiking(neuron).after(self, "norm1")
        self.conv1 = Folded(_conv(inputs, outputs, stride))
        self.norm2, self.fire2 = nn.BatchNorm2d(outputs), Spiking(neuron).after(self, "norm2")
        self.conv2 = Folded(_conv(outputs, outputs))
        self.shortcut = (
            Folded(_conv(inputs, outputs, stride, 1)) if inputs != outputs or stride != 1 else None
        )
        self.join = ConvexCombination()

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        spikes = self.fire1(x, timesteps)
        beside = x if self.shortcut is None else self.shortcut(spikes)
        joined: Tensor = self.join(beside, self.conv2(self.fire2(self.conv1(spikes), timesteps)))
        return joined


class WRN(nn.Module):
    """Stem, three groups of ``blocks`` blocks, batch norm, neurons, global average pooling.

    Features ``[T, N, F]``.
    """

    def __init__(self, channels: int, neuron: Neuron, blocks: int, widen: int) -> None:
        super().__init__()
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.stem = Folded(_conv(channels, widths[0], exact=True))
        self.blocks = Blocks()
        for group in range(3):
            for b in range(blocks):
                inputs = widths[group] if b == 0 else widths[group + 1]
                self.blocks.append(Block(inputs, widths[group + 1], 2 if group and b == 0 else 1, neuron))
        self.norm, self.fire = nn.BatchNorm2d(widths[3]), Spiking(neuron).after(self)

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        spikes: Tensor = self.fire(self.blocks(self.stem(x), timesteps), timesteps)
        return spikes.mean((-2, -1))


def wrn16(in_shape: Sequence[int], neuron: Neuron, widen: int = 4) -> tuple[nn.Module, int]:
    """The body of WRN-16-``widen`` and its number of features."""
    return WRN(in_shape[0], neuron, 2, widen), 64 * widen
