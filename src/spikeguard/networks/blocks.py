"""Blocks; with ``checkpoint`` they are computed again in the backward pass (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spikeguard.neurons import Spiking, recomputation, spiking


class Blocks(nn.ModuleList):
    """``x [T or 1, N, ...], timesteps -> [T, N, ...]``. Only a training forward is checkpointed.

    Results are the same to the bit.
    """

    checkpoint = False

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        """Apply every block."""
        for block in self:
            if self.checkpoint and self.training:
                x = checkpoint(
                    block,
                    x,
                    timesteps,
                    use_reentrant=False,
                    context_fn=_Contexts(list(spiking(block).values())),
                )
            else:
                x = block(x, timesteps)
        return x


class _Contexts:
    """The contexts of the first pass and of its repetition, in which layers draw the same noise.

    The repetition notifies no tap.
    """

    def __init__(self, layers: list[Spiking]) -> None:
        self.layers = layers

    def __call__(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _all([recomputation(layer) for layer in self.layers])


@contextmanager
def _all(contexts: list[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
