"""What torch passes to a custom autograd function; each function adds the fields that it keeps."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.autograd.graph import Node


class Running(Protocol):
    """A node of a running backward pass. Of an argument that needs no gradient the next node is None."""

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        """One value for each argument of ``forward``."""

    @property
    def next_functions(self) -> tuple[tuple[Node | None, int], ...]:
        """The nodes that receive the gradients, one for each tensor argument."""


class Context(Running, Protocol):
    """The first argument of ``forward`` and ``backward``."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for the backward pass, which finds them in ``saved_tensors``."""

    def set_materialize_grads(self, value: bool) -> None:
        """With False, gradients that nobody needs are None instead of zeros."""
