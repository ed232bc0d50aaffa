"""Batch norm modules in front of layers of neurons."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from spikeguard.kernels.mode import Norm


def is_fusable(norm: nn.BatchNorm2d) -> bool:
    """Can the C++ pass compute this norm? Not a norm of another class, nor one with hooks, which must run."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks)
    )


def normalize(norm: nn.BatchNorm2d, current: Tensor, recomputing: bool) -> Tensor:
    """Apply the norm to a current ``[T, N, C, H, W]``.

    With ``recomputing`` the batch was counted before, so the running averages do not move.
    """
    folded = _unambiguous(current.flatten(0, 1))
    if recomputing and norm.training:
        folded = F.batch_norm(
            folded, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, 0.0, norm.eps
        )
    else:
        folded = norm(folded)
    normalized: Tensor = folded.unflatten(0, current.shape[:2])
    return normalized


def norm_state(norm: nn.BatchNorm2d, recomputing: bool) -> Norm:
    """The parameters and statistics that a kernel needs; counts the batch unless ``recomputing``."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    if norm.training and not recomputing:
        norm.num_batches_tracked.add_(1)
    momentum = 0.0 if recomputing else norm.momentum
    return Norm(
        norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, momentum, norm.training
    )


def _unambiguous(images: Tensor) -> Tensor:
    """Images ``[N, C, H, W]`` whose strides say how they lie in memory.

    A single image has any stride over N. Where it is not that of an image, torch's batch norm misreads the
    layout of a gradient that lies in another order, and gives back a wrong one.
    """
    if len(images) != 1 or images.dim() != 4 or images.is_contiguous():
        return images
    return images.as_strided(images.shape, (images.numel(), *images.stride()[1:]))
