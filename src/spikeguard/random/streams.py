"""Where a module's random numbers come from, and how to restore that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikeguard.kernels.layout import Layout
from spikeguard.random import draws


@dataclass
class NoiseStream:
    """Where noise comes from: call number k of a layer draws from ``(seed, k)``."""

    seed: int
    calls: int = 0

    def next(self) -> int:
        self.calls += 1
        return draws.key(self.seed, self.calls)


class StochasticModule(nn.Module):
    """A module that draws random numbers: from ``source`` if it is set, else from torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.source: NoiseStream | None = None

    def key(self) -> int:
        """The key of this call's draws."""
        return self.source.next() if self.source else int(torch.randint(2**62, (), device="cpu").item())

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform draws in (0, 1) of a shape ``[T, N, ...]``, laid out in memory like ``like``.

        Sample n's do not depend on the batch size.
        """
        rows = torch.arange(like.shape[1], device=like.device)
        layout = Layout.of(like)
        drawn = draws.uniform(self.key(), rows, like.numel() // like.shape[1]).view(len(rows), len(like), -1)
        return layout.full(drawn.transpose(0, 1).reshape(len(like), -1)).to(like.dtype)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal draws of the shape and layout of ``like``."""
        keys = draws.step_keys(self.key(), torch.arange(like.shape[1], device=like.device), len(like))
        return (
            Layout.of(like)
            .full(draws.normal(keys, like[0, 0].numel(), len(like)).view(len(like), -1))
            .to(like.dtype)
        )


@contextmanager
def preserved_noise(model: nn.Module) -> Iterator[None]:
    """Restore the model's sources of random numbers, and their numbers of calls, afterwards."""
    drawing = [m for m in model.modules() if isinstance(m, StochasticModule)]
    before = [(m, m.source, m.source.calls if m.source else 0) for m in drawing]
    try:
        yield
    finally:
        for m, source, calls in before:
            m.source = source
            if source is not None:
                source.calls = calls
