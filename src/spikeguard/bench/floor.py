"""The floor: the time that the convolutions and linear layers of a step take alone on this machine.

Each layer runs on stored random tensors of its own shapes, channels-last, by the same library. What is
constant over time is computed once. Nothing can be faster than this with the same products by the same
library, so it is the yardstick for everything around them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikeguard.networks.classifier import Classifier


@dataclass(frozen=True)
class Layer:
    """One product of the network.

    ``x`` its input, ``g`` the gradient of its output, both as they lie in memory there.
    """

    x: Tensor
    weight: Tensor
    g: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    first: bool

    @property
    def linear(self) -> bool:
        return self.weight.dim() == 2

    @property
    def operations(self) -> int:
        """Floating point operations of the forward pass; each gradient takes as many."""
        return 2 * self.g.numel() * self.weight[0].numel()

    def forward(self) -> None:
        if self.linear:
            nn.functional.linear(self.x, self.weight)
        else:
            torch.conv2d(self.x, self.weight, None, self.stride, self.padding)

    def backward(self, inputs: bool, weights: bool) -> None:
        if not (inputs or weights):
            return
        if not self.linear:
            mask, zero, one = [inputs, weights, False], [0, 0], [1, 1]
            torch.ops.aten.convolution_backward(
                self.g,
                self.x,
                self.weight,
                None,
                list(self.stride),
                list(self.padding),
                one,
                False,
                zero,
                1,
                mask,
            )
            return
        if inputs:
            self.g @ self.weight
        if weights:
            self.g.t() @ self.x


class Floor:
    """The products of a network on a batch ``x`` ``[N, C, H, W]`` in one precision."""

    def __init__(self, net: Classifier, x: Tensor, dtype: torch.dtype) -> None:
        self.layers: list[Layer] = []
        modules = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        handles = [m.register_forward_hook(self._recorder(m, dtype, m is modules[0])) for m in modules]
        try:
            with torch.no_grad():
                net(x)
        finally:
            for handle in handles:
                handle.remove()

    def _recorder(
        self, module: nn.Conv2d | nn.Linear, dtype: torch.dtype, first: bool
    ) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            layout = torch.channels_last if isinstance(module, nn.Conv2d) else torch.contiguous_format
            x, weight, g = (
                t.detach().to(dtype).contiguous(memory_format=layout)
                for t in (inputs[0], module.weight, torch.randn_like(output))
            )
            stride, padding = (module.stride, module.padding) if isinstance(module, nn.Conv2d) else ((), ())
            self.layers.append(Layer(x, weight, g, stride, padding, first))  # type: ignore[arg-type]

        return hook

    def train(self) -> None:
        """Forward, input gradients but the images', weight gradients."""
        for layer in self.layers:
            layer.forward()
        for layer in reversed(self.layers):
            layer.backward(not layer.first, True)

    def attack(self) -> None:
        """Forward and input gradients: one step of an attack."""
        for layer in self.layers:
            layer.forward()
        for layer in reversed(self.layers):
            layer.backward(True, False)

    @property
    def train_operations(self) -> int:
        """Floating point operations of ``train``."""
        return sum(layer.operations * (2 if layer.first else 3) for layer in self.layers)
