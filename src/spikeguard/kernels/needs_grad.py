"""Which gradients a running backward pass will use: an attack needs none of the weights'."""

from __future__ import annotations

import torch

from spikeguard.kernels.context import Running


def needs_grad(ctx: Running, place: int, among: int | None = None) -> bool:
    """Will the gradient of this argument be used? ``needs_input_grad`` only says if it could be.

    ``place`` counts all arguments, ``among`` only the tensors.
    """
    if not ctx.needs_input_grad[place]:
        return False
    node = ctx.next_functions[place if among is None else among][0]
    try:
        return node is None or bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # torch refuses the question for a leaf that is an input of torch.autograd.grad
        return True
