"""What float32 means on a GPU, and float32 where torch's default is another type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _switches() -> list[tuple[Any, str, Any]]:
    """Where torch keeps them, by version, and what they are set to."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(cudnn, "conv"):  # from torch 2.9 on; the old names refuse to be read once the new ones differ
        return [
            (cudnn, "deterministic", True),
            *((part, "fp32_precision", "ieee") for part in (cudnn.conv, cudnn.rnn, matmul)),
        ]
    return [(cudnn, "deterministic", True), (cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]


@contextmanager
def exact() -> Iterator[None]:
    """Convolutions and matrix products in true float32, by algorithms that repeat to the bit; what was set
    before comes back.

    By default cuDNN rounds the inputs of convolutions to ten bits (TF32): 1/255 is then hardly seen, and
    potentials near the threshold fall on the other side of it.
    """
    before = [(place, name, getattr(place, name)) for place, name, _ in _switches()]
    try:
        for place, name, value in _switches():
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """What torch makes without a dtype is float32, as where networks are built and trained; what was set
    before comes back.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
