"""Sets of labeled images, stored as bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spikeguard.errors import UserError
from spikeguard.random import draws


def pixels(x: Tensor) -> Tensor:
    """Stored images as float32 in [0, 1]: bytes are divided by 255."""
    return x if x.is_floating_point() else x.float() / 255.0


@dataclass(frozen=True)
class Images:
    """Labeled images: ``x`` uint8 ``[N, C, H, W]`` (or float32 in [0, 1], or events ``[N, T, C, H, W]``) and
    ``y`` int64 ``[N]``.

    ``index`` int64 ``[N]`` is the number of each image in its official set.

    >>> images = sg.data.Images.of(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    >>> len(images), images.pixels().shape, images.index.tolist()
    (4, torch.Size([4, 1, 8, 8]), [0, 1, 2, 3])
    """

    x: Tensor
    y: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"Images({len(self)} of shape {list(self.x.shape[1:])}, {self.x.dtype})"

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

    def at_most(self, count: int) -> Images:
        """Return up to ``count`` images, as evenly over the classes as these allow, in order."""
        place = torch.zeros(len(self), dtype=torch.int64, device="cpu")
        for c in self.y.unique():
            rows = torch.nonzero(self.y == c).flatten()
            place[rows] = torch.arange(len(rows), device="cpu")
        chosen = torch.argsort(place, stable=True)[:count]
        return self.select(chosen.sort().values)

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
        return pixels(self.x)

    def to(self, device: torch.device | str) -> Images:
        """Move the images to another device."""
        return Images(self.x.to(device), self.y.to(device), self.index)


@dataclass(frozen=True)
class Dataset:
    """Training and test images, the names of the classes, and the training pixels' mean and standard
    deviation per channel. ``digest``: of images of the user's own, to know them again; else None.

    >>> images = sg.data.Images.of(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    >>> data = sg.data.Dataset("mine", images, images, ("no", "yes"), mean=(0.5,), std=(0.5,))
    >>> data.in_shape
    (1, 8, 8)
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str | None = None

    def __repr__(self) -> str:
        counts = f"{len(self.train)} training and {len(self.test)} test images of shape {list(self.in_shape)}"
        return f"Dataset({self.name!r}, {counts}, {len(self.classes)} classes)"

    def checked(self) -> Dataset:
        """Itself; UserError if a training or an attack could not use it."""
        channels = self.in_shape[0] if self.train.x.dim() == 4 else 0
        for part, images in (("train", self.train), ("test", self.test)):
            x, y, where = images.x, images.y, f"data set {self.name!r}: {part}"
            if x.dtype != torch.uint8 or x.dim() != 4 or x.shape[1:] != self.train.x.shape[1:] or not len(x):
                raise UserError(
                    f"{where}.x is {x.dtype} of shape {tuple(x.shape)}, must be uint8 [N, C, H, W], of one "
                    "shape in train and test"
                )
            if y.dtype != torch.int64 or y.shape != x.shape[:1] or len(images.index) != len(x):
                raise UserError(f"{where}: y and index must be int64 [{len(x)}], one value an image")
            if not 0 <= int(y.min()) <= int(y.max()) < len(self.classes):
                raise UserError(
                    f"{where}: labels go from {int(y.min())} to {int(y.max())}, must lie in [0, "
                    f"{len(self.classes) - 1}], one for each name in classes"
                )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise UserError(
                    f"data set {self.name!r}: {name} has {len(values)} values, must have {channels}"
                )
        return self

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of an image, (C, H, W)."""
        return tuple(self.train.x.shape[1:])
