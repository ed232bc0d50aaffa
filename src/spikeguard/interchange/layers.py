"""Layers made from the tensors of a state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikeguard.errors import UserError
from spikeguard.interchange.state_files import State


class Normalize(nn.Module):
    """``(x - mean) / std`` for each channel, ``[N, C, H, W] -> [N, C, H, W]``."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(-1, 1, 1))
        self.register_buffer("std", std.view(-1, 1, 1))
        self.mean: Tensor
        self.std: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def conv(state: State, name: str, stride: int = 1) -> nn.Conv2d:
    """The convolution of that name, padded by half its kernel."""
    weight = state.take(f"{name}.weight", 4)
    bias = state.take(f"{name}.bias", 1) if state.has(f"{name}.bias") else None
    outputs, inputs, *kernel = weight.shape
    layer = nn.Conv2d(
        inputs,
        outputs,
        (kernel[0], kernel[1]),
        stride,
        (kernel[0] // 2, kernel[1] // 2),
        bias=bias is not None,
        dtype=torch.float32,
    )
    _fill(state.where, name, layer, weight, bias)
    return layer


def linear(state: State, name: str) -> nn.Linear:
    """The linear layer of that name."""
    weight = state.take(f"{name}.weight", 2)
    bias = state.take(f"{name}.bias", 1) if state.has(f"{name}.bias") else None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=torch.float32)
    _fill(state.where, name, layer, weight, bias)
    return layer


def norm(state: State, name: str, eps: float = 1e-5) -> nn.BatchNorm2d:
    """The batch norm of that name."""
    weight = state.take(f"{name}.weight", 1)
    layer = nn.BatchNorm2d(len(weight), eps=eps, dtype=torch.float32)
    values = {key: state.take(f"{name}.{key}", 1) for key in ("bias", "running_mean", "running_var")}
    if any(len(value) != len(weight) for value in values.values()):
        raise UserError(f"{state.where}: {name}: its tensors differ in length")
    layer.load_state_dict({"weight": weight, **values}, strict=False)
    return layer


def _fill(where: str, name: str, layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    if bias is not None and len(bias) != len(weight):
        raise UserError(f"{where}: {name} has {len(bias)} biases for {len(weight)} outputs")
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
