"""Batch norm modules as layers of neurons use them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from spikeguard.kernels.mode import Norm


def is_fusable(norm: nn.BatchNorm2d) -> bool:
    """Can a kernel stand in for this norm? Not if it is of another kind.

    Or has hooks that want to see it called.
    """
    return (
        type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks)
    )


def normed(norm: nn.BatchNorm2d, x: Tensor, recomputing: bool) -> Tensor:
    """The norm applied to ``[N, C, H, W]``; ``replays``.

    The batch was seen before, so its running averages stay.
    """
    if recomputing and norm.training:
        return F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, 0.0, norm.eps
        )
    normed: Tensor = norm(x)
    return normed


def norm_state(norm: nn.BatchNorm2d, recomputing: bool) -> Norm:
    """What a kernel has to know of it; counts the batch, unless it ``replays`` one."""
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
