"""What float32 means on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact() -> Iterator[None]:
    """cuDNN's convolutions in true float32, by algorithms that repeat to the bit.

    By default it rounds their inputs to ten bits (TF32): 1/255 is then hardly seen, and potentials near the threshold fall on the other side of it.
    """
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False):
        yield
