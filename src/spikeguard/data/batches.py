"""Training batches: images stay on the device as bytes; crop and flip act on a whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeguard.data.images import Images, pixels
from spikeguard.random import draws


@dataclass(frozen=True)
class Placement:
    """How the images of a batch are shifted, by 0 to 2 ``pad`` pixels, and which of them are mirrored.

    ``down``, ``right`` and ``mirrored``: ``[N]``.
    """

    down: Tensor
    right: Tensor
    mirrored: Tensor
    pad: int

    @staticmethod
    def draw(count: int, generator: torch.Generator, device: torch.device, pad: int = 4) -> Placement:
        """Placements of ``count`` images at random."""
        down, right = torch.randint(0, 2 * pad + 1, (2, count), generator=generator, device="cpu").to(device)
        mirrored = torch.rand(count, dtype=torch.float32, generator=generator, device="cpu").to(device) < 0.5
        return Placement(down, right, mirrored, pad)

    def apply(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` so placed, with zeros where nothing was."""
        padded = F.pad(x, (self.pad,) * 4)
        return padded.permute(0, 2, 3, 1)[self._sources(x)].permute(0, 3, 1, 2)

    def put_back(self, placed: Tensor, x: Tensor) -> Tensor:
        """``x`` with its visible pixels replaced by those of ``placed``: what ``apply`` left out stays."""
        padded = F.pad(x, (self.pad,) * 4).permute(0, 2, 3, 1).contiguous()
        padded[self._sources(x)] = placed.permute(0, 2, 3, 1)
        height, width = x.shape[2:]
        inner = padded[:, self.pad : self.pad + height, self.pad : self.pad + width]
        return inner.permute(0, 3, 1, 2).contiguous()

    def _sources(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sample, row and column of every pixel in the padded images."""
        n, _, height, width = x.shape
        rows = self.down[:, None] + torch.arange(height, device=x.device)
        columns = torch.arange(width, device=x.device).expand(n, width)
        columns = self.right[:, None] + torch.where(self.mirrored[:, None], width - 1 - columns, columns)
        sample = torch.arange(n, device=x.device)[:, None, None]
        return sample, rows[:, :, None], columns[:, None, :]


def crop_and_flip(x: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Shift each image of a batch by up to ``pad`` pixels and mirror half of them.

    ``x``: ``[N, C, H, W]``; the result has the same shape, with zeros where nothing was.
    """
    return Placement.draw(len(x), generator, x.device, pad).apply(x)


class TrainingBatch(NamedTuple):
    """Images ``[N, C, H, W]`` in [0, 1], labels ``[N]``, their places ``[N]`` in the training set.

    ``placement``: how they were shifted and mirrored; None: not at all. ``images``: size of that set.
    """

    x: Tensor
    y: Tensor
    rows: Tensor
    placement: Placement | None
    images: int


def placed_batches(
    images: Images, size: int, epoch: int, seed: int, augment: bool, start: int = 0
) -> Iterator[TrainingBatch]:
    """Yield the shuffled training batches of one epoch, from batch ``start`` on.

    A last, shorter batch is left out. Order and augmentation depend on seed, epoch and batch only, so that a
    resumed epoch continues with the same batches.
    """
    order = torch.randperm(len(images), generator=draws.generator("order", seed, epoch), device="cpu").to(
        images.x.device
    )
    for b in range(start, len(images) // size):
        rows = order[b * size : (b + 1) * size]
        x, placement = images.x[rows], None
        if augment:
            placement = Placement.draw(len(x), draws.generator("augment", seed, epoch, b), x.device)
            x = placement.apply(x)
        yield TrainingBatch(pixels(x), images.y[rows], rows, placement, len(images))


def batches(
    images: Images, size: int, epoch: int, seed: int, augment: bool, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """As ``placed_batches``, images and labels only."""
    for batch in placed_batches(images, size, epoch, seed, augment, start):
        yield batch.x, batch.y
