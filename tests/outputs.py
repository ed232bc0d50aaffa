"""What the tests of several kernels share: the words of a mode, and outputs that must be the same."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from spikeguard.kernels.mode import LayerOutput

Reset = Literal["hard", "soft"]
Site = Literal["compare", "membrane", "band"]
Kernel = Callable[..., LayerOutput]  # (current, decay, threshold, mode, noise, sharpness, ...)
Outcome = tuple[LayerOutput, Sequence[Tensor]]
"""Outputs, and the gradients of a loss of them."""


def assert_same(a: Outcome, b: Outcome, tolerance: float) -> None:
    assert torch.equal(a[0].spikes, b[0].spikes)
    assert a[0].u is not None
    assert b[0].u is not None
    assert torch.equal(a[0].u, b[0].u)
    if a[0].penalty is not None:
        torch.testing.assert_close(a[0].penalty, b[0].penalty, rtol=tolerance, atol=0)
    for x, y in zip(a[1], b[1], strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance * float(x.abs().max()))
