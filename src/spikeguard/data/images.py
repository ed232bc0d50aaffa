"""Sets of labeled images, stored as bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spikeguard.errors import UserError
from spikeguard.random import draws


@dataclass(frozen=True)
class Images:
    """Labeled images: ``x`` uint8 ``[N, C, H, W]`` and ``y`` int64 ``[N]``.

    ``index`` int64 ``[N]`` is the number of each image in its official set.
    """

    x: Tensor
    y: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.y)

    @staticmethod
    def of(x: Tensor, y: Tensor) -> Images:
        """Make a set of all images of an official set, in its order."""
        return Images(x, y.long(), torch.arange(len(y), device="cpu"))

    def select(self, rows: Tensor) -> Images:
        """Return the images at these rows."""
        return Images(self.x[rows], self.y[rows], self.index[rows.cpu()])

    def balanced(self, count: int) -> Images:
        """Return the first ``count`` images with equally many of each class, in order.

        Raises UserError if ``count`` is no multiple of the classes, or a class has too few images.
        """
        if not len(self):
            raise UserError(f"{count} images needed, there are none")
        classes = int(self.y.max()) + 1
        if count < classes or count % classes:
            raise UserError(
                f"{count} images cannot be balanced over {classes} classes: take a multiple of {classes}"
            )
        rows = [torch.nonzero(self.y == c).flatten()[: count // classes] for c in range(classes)]
        if short := [c for c, r in enumerate(rows) if len(r) < count // classes]:
            raise UserError(
                f"{count} images needed, but class {short[0]} has only {len(rows[short[0]])} of "
                f"{count // classes}"
            )
        return self.select(torch.cat(rows).sort().values)

    def split(self, share: float) -> tuple[Images, Images]:
        """Split into a training and a validation part; the latter gets ``share`` of every class.

        The split is the same for every seed of a training.
        """
        order = torch.randperm(
            len(self), generator=draws.generator("validation split", len(self)), device="cpu"
        )
        held = torch.zeros(len(self), dtype=torch.bool, device="cpu")
        for c in range(int(self.y.max()) + 1):
            rows = order[self.y[order] == c]
            held[rows[: round(share * len(rows))]] = True
        return self.select(torch.nonzero(~held).flatten()), self.select(torch.nonzero(held).flatten())

    def pixels(self) -> Tensor:
        """Return the images as float32 ``[N, C, H, W]`` in [0, 1]."""
        return self.x.float() / 255.0

    def to(self, device: torch.device | str) -> Images:
        """Move the images to another device."""
        return Images(self.x.to(device), self.y.to(device), self.index)


@dataclass(frozen=True)
class Dataset:
    """Training and test images, the names of the classes, and the training pixels' mean and standard
    deviation per channel.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of an image, (C, H, W)."""
        return tuple(self.train.x.shape[1:])
