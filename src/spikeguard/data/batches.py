"""Training batches: images stay on the device as bytes; crop and flip act on a whole batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeguard.data.images import Images
from spikeguard.random import draws


def crop_and_flip(x: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Shift each image of a batch by up to ``pad`` pixels and mirror half of them.

    ``x``: ``[N, C, H, W]``; the result has the same shape, with zeros where nothing was.
    """
    n, _, height, width = x.shape
    device = x.device
    down, right = torch.randint(0, 2 * pad + 1, (2, n), generator=generator).to(device)
    mirrored = torch.rand(n, dtype=torch.float32, generator=generator).to(device) < 0.5
    rows = down[:, None] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(n, width)
    columns = right[:, None] + torch.where(mirrored[:, None], width - 1 - columns, columns)
    padded = F.pad(x, (pad, pad, pad, pad))
    sample = torch.arange(n, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def batches(
    images: Images, size: int, epoch: int, seed: int, augment: bool, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the shuffled training batches of one epoch, from batch ``start`` on.

    A batch is ``(x, y)``: float ``[size, C, H, W]`` in [0, 1] and int64 ``[size]``. A last, shorter batch is
    left out. Order and augmentation depend on seed, epoch and batch only, so that a resumed epoch continues
    with the same batches.
    """
    order = torch.randperm(len(images), generator=draws.generator("order", seed, epoch)).to(images.x.device)
    for b in range(start, len(images) // size):
        rows = order[b * size : (b + 1) * size]
        x = images.x[rows]
        if augment:
            x = crop_and_flip(x, draws.generator("augment", seed, epoch, b))
        yield x.float() / 255.0, images.y[rows]
