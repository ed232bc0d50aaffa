"""Differentiating where only ``backward()`` works, without a trace in anyone's ``.grad``.

Re-entrant checkpoints (``torch.utils.checkpoint`` with ``use_reentrant=True``) refuse
``torch.autograd.grad``. ``backward()`` adds to ``.grad`` of all leaves, so that these are put aside and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spikeguard.models import Model


def needs_backward(error: Exception) -> bool:
    """Whether an error says that gradients have to be taken by ``backward()``."""
    return "use_reentrant" in str(error) or "Checkpointing is not compatible with .grad()" in str(error)


class Leaves(TorchFunctionMode):
    """Puts gradients of leaf tensors aside: of those added, and those that functions get while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple[Tensor, Tensor | None]] = {}

    def add(self, leaf: Tensor) -> None:
        """Put the gradient of one leaf aside."""
        if id(leaf) not in self.held:
            self.held[id(leaf)] = (leaf, leaf.grad)
            leaf.grad = None

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        for value in args:
            if isinstance(value, Tensor) and value.is_leaf and value.requires_grad:
                self.add(value)
        return func(*args, **(kwargs or {}))


@contextmanager
def leaves_kept(model: Model) -> Iterator[Leaves]:
    """Put the gradients of the model's parameters aside, and back at the end.

    What it gives is entered around the forward pass, to find those of a plain function.
    """
    leaves = Leaves()
    for p in model.parameters() if isinstance(model, nn.Module) else ():
        leaves.add(p)
    try:
        yield leaves
    finally:
        for leaf, gradient in leaves.held.values():
            leaf.grad = gradient
