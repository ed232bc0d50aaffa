"""Batch norm in evaluation is ``scale x + shift`` for each channel; it folds into the layer before it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from spikeguard.errors import UserError


def as_affine(norm: _BatchNorm, where: str) -> tuple[Tensor, Tensor]:
    """Scale and shift ``[C]`` of a batch norm in evaluation, in float64.

    Raises UserError if it keeps no running statistics: then it has no fixed scale.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise UserError(f"{where}: a batch norm without running statistics cannot be folded")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


def fold(weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight ``[O, ...]`` and bias ``[O]`` of a layer with ``scale x + shift`` after it."""
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias * scale + shift


def dense(weight: Tensor, groups: int) -> Tensor:
    """Weight ``[O, C, ...]`` of the convolution in one group that equals one ``[O, C / groups, ...]``."""
    if groups == 1:
        return weight
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    wide = weight.new_zeros(weight.shape[0], inputs * groups, *weight.shape[2:])
    for g in range(groups):
        rows = slice(g * outputs, (g + 1) * outputs)
        wide[rows, g * inputs : (g + 1) * inputs] = weight[rows]
    return wide


def channelwise(scale: Tensor, spatial: int) -> Tensor:
    """Weight of the layer that multiplies each channel by its ``scale``: 1x1 with ``spatial`` dimensions."""
    return torch.diag(scale).view(*[len(scale)] * 2, *[1] * spatial)
