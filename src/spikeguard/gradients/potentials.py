"""Potentials of neurons that no adapter knows: what is read while a gradient is taken."""

from __future__ import annotations

import torch
from torch import Tensor

from spikeguard.arguments import checked
from spikeguard.errors import UserError
from spikeguard.gradients.surrogate import derive_replaced
from spikeguard.models import Model
from spikeguard.runtime.untouched import leaves_untouched
from spikeguard.surrogates import Atan, Surrogate


class Noted(Surrogate):
    """Keeps the potential that a backward pass hands it."""

    def __init__(self) -> None:
        self.u: Tensor | None = None

    def derivative(self, u: Tensor, sharpness: Tensor | None = None) -> Tensor:
        self.u = u.detach()
        return Atan().derivative(u)

    def soft_step(self, u: Tensor) -> Tensor:
        return Atan().soft_step(u)


@checked
@leaves_untouched
def read_potentials(model: Model, x: Tensor) -> list[Tensor]:
    """Distances to the threshold ``[N, ...]``, one for each call of a spike function before the logits.

    The last call comes last. For networks whose neurons ``sg.tap`` does not know; it gives layers and time
    steps by name. ``x``: images ``[N, C, H, W]`` in [0, 1]. UserError if a potential cannot be read, and what
    ``sg.fgsm`` raises where no gradient reaches the images.

    >>> class Spike(torch.autograd.Function):
    ...     @staticmethod
    ...     def forward(ctx, u):
    ...         ctx.save_for_backward(u)
    ...         return (u >= 0).float()
    ...     @staticmethod
    ...     def backward(ctx, g):
    ...         return g * (ctx.saved_tensors[0].abs() < 0.5)
    >>> mine = torch.nn.Linear(64, 10)
    >>> (u,) = sg.gradients.read_potentials(lambda x: Spike.apply(mine(x.flatten(1)) - 0.5), x)
    >>> torch.allclose(u, mine(x.flatten(1)) - 0.5)
    True
    """
    noted: list[Noted] = []
    unread = set[str]()

    def choose(name: str) -> Surrogate:
        noted.append(Noted())
        return noted[-1]

    def total(logits: Tensor, y: Tensor) -> Tensor:
        return logits.flatten(1).sum(1)

    y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    derive_replaced(model, x, y, total, choose, unread=unread)
    if unread:
        raise UserError(f"read_potentials: the potential of {', '.join(sorted(unread))} cannot be read")
    return [n.u for n in reversed(noted) if n.u is not None]
