"""Sets of labeled images, kept as bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spikeguard.errors import UserError
from spikeguard.random import draws


@dataclass(frozen=True)
class Images:
    """``x`` uint8 ``[N, C, H, W]`` and ``y`` int64 ``[N]``.

    ``index`` is each image's number in its official set.
    """

    x: Tensor
    y: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.y)

    @staticmethod
    def of(x: Tensor, y: Tensor) -> Images:
        """All images of an official set, in its order."""
        return Images(x, y.long(), torch.arange(len(y)))

    def select(self, rows: Tensor) -> Images:
        """The images at these rows."""
        return Images(self.x[rows], self.y[rows], self.index[rows.cpu()])

    def balanced(self, count: int) -> Images:
        """The first ``count`` images with equally many of each class, in order.

        UserError if a class has too few.
        """
        classes = int(self.y.max()) + 1
        if count < classes or count % classes:
            raise UserError(
                f"{count} images cannot be balanced over {classes} classes: take a multiple of {classes}"
            )
        rows = [torch.nonzero(self.y == c).flatten()[: count // classes] for c in range(classes)]
        if short := [c for c, r in enumerate(rows) if len(r) < count // classes]:
            raise UserError(
                f"{count} images asked for, but class {short[0]} has only {len(rows[short[0]])} of "
                f"{count // classes}"
            )
        return self.select(torch.cat(rows).sort().values)

    def split(self, share: float) -> tuple[Images, Images]:
        """Training and validation part, the latter ``share`` of every class.

        The same cut whatever the seed of a training.
        """
        order = torch.randperm(len(self), generator=draws.generator("validation split", len(self)))
        held = torch.zeros(len(self), dtype=torch.bool)
        for c in range(int(self.y.max()) + 1):
            rows = order[self.y[order] == c]
            held[rows[: round(share * len(rows))]] = True
        return self.select(torch.nonzero(~held).flatten()), self.select(torch.nonzero(held).flatten())

    def pixels(self) -> Tensor:
        """The images as float32 in [0, 1]."""
        return self.x.float() / 255.0

    def to(self, device: torch.device | str) -> Images:
        """On another device."""
        return Images(self.x.to(device), self.y.to(device), self.index)


@dataclass(frozen=True)
class Dataset:
    """Training and test images, the names of the classes.

    And the training pixels' mean and standard deviation per channel.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def in_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.train.x.shape[1:])
