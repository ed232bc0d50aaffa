"""The causal test: does it help to hold the spikes of the neurons that lie near the threshold?

If near neurons are why a network breaks, then holding *their* spikes at the values of the clean image saves
more of the attacked images than holding as many random or far ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from spikeguard.diagnosis.readings import Reading, read
from spikeguard.records.diagnosis import HeldRow
from spikeguard.records.schema import Accuracy

Order = Callable[[Tensor], Tensor]
"""From ``|u|`` ``[T, N, neurons]`` to numbers of that shape: the lowest ones are held."""


def held_rows(
    net: nn.Module, x: Tensor, y: Tensor, clean: Reading, shares: Sequence[float], batch_size: int, seed: int
) -> tuple[HeldRow, ...]:
    """Accuracy on attacked images ``x`` for each share of spikes that is held, in every layer and image."""
    generator = torch.Generator().manual_seed(seed)
    orders: tuple[Order, ...] = (
        lambda size: size,
        lambda size: torch.rand(size.shape, generator=generator, dtype=torch.float32, device="cpu").to(size),
        lambda size: -size,
    )

    def right(order: Order, share: float) -> Accuracy:
        return read(net, x, batch_size, held=holds(clean, order, share)).accuracy(y)

    return tuple(HeldRow(share, *(right(order, share) for order in orders)) for share in shares)


def holds(clean: Reading, order: Order, share: float) -> dict[str, Tensor]:
    """Infinities where spikes are held: in each image and layer, the first ``share`` in that order."""
    pushes = {}
    for name, u in clean.u.items():
        steps, images, neurons = u.shape
        place = order(u.abs()).transpose(0, 1).reshape(images, -1)
        count = round(share * steps * neurons)
        first = place.argsort(dim=1, stable=True)[:, :count]
        value = torch.where(clean.spikes[name], torch.inf, -torch.inf).to(u.dtype)
        flat = value.transpose(0, 1).reshape(images, -1)
        push = torch.zeros_like(flat).scatter(1, first, flat.gather(1, first))
        pushes[name] = push.view(images, steps, neurons).transpose(0, 1)
    return pushes
