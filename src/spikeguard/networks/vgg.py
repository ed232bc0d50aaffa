"""VGG-11 of the literature on robust spiking networks: pooling after the spike, two hidden linear layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from spikeguard.networks.classifier import Folded
from spikeguard.networks.small import Stages
from spikeguard.neurons import Neuron, Spiking

CHANNELS = (64, "A", 128, 256, "A", 512, 512, 512, "A", 512, 512)


class VGG(nn.Module):
    """Convolutional stages, then linear layers of ``hidden`` neurons."""

    def __init__(self, in_shape: Sequence[int], neuron: Neuron, hidden: Sequence[int]) -> None:
        super().__init__()
        self.features = Stages(CHANNELS, in_shape[0], neuron)
        inputs = 512 * (in_shape[1] // 8) * (in_shape[2] // 8)
        self.linear, self.fire = nn.ModuleList(), nn.ModuleList()
        for outputs in hidden:
            self.linear.append(Folded(nn.Linear(inputs, outputs)))
            self.fire.append(Spiking(neuron))
            inputs = outputs

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        x = self.features(x, timesteps)
        for linear, fire in zip(self.linear, self.fire, strict=True):
            x = fire(linear(x), timesteps)
        return x


def vgg11(
    in_shape: Sequence[int], neuron: Neuron, hidden: Sequence[int] = (4096, 4096)
) -> tuple[nn.Module, int]:
    """The body and its number of features."""
    return VGG(in_shape, neuron, hidden), hidden[-1]
