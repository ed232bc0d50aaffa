"""Official files of images packed as lossless pictures.

A picture is a grid of images; their labels lie beside it in ``labels.npz``. The official file is rebuilt from
both, byte for byte, so that its checksum holds.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, GRID = 32, 100  # pixels of an image, images in a row and in a column of a picture
LABELS = "labels.npz"


@dataclass(frozen=True)
class Packed:
    """How one official file of CIFAR is packed.

    ``pictures``: its files, in order; ``labels``: arrays of ``labels.npz``, one for each byte in front of an
    image; ``first``: where the file's images begin in these arrays.
    """

    pictures: tuple[str, ...]
    labels: tuple[str, ...]
    first: int = 0

    def lies_in(self, folder: Path) -> bool:
        """Whether a folder has all its parts."""
        return all((folder / name).is_file() for name in (*self.pictures, LABELS))

    def content(self, folder: Path) -> bytes:
        """The official file; OSError if a part is damaged."""
        try:
            pixels = np.concatenate([_images(folder / name) for name in self.pictures])
            with (folder / LABELS).open("rb") as file, np.load(file, allow_pickle=False) as held:
                labels = [held[name][self.first : self.first + len(pixels), None] for name in self.labels]
            return np.concatenate([*labels, pixels], 1).astype(np.uint8).tobytes()
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            raise OSError(f"{type(error).__name__}: {error}") from error


def _images(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Images ``[10000, 3072]``, channel by channel, of a picture."""
    with Image.open(path) as picture:
        grid = np.asarray(picture.convert("RGB"), np.uint8)
    tiles = grid.reshape(GRID, SIDE, GRID, SIDE, 3).transpose(0, 2, 4, 1, 3)
    return tiles.reshape(GRID * GRID, 3 * SIDE * SIDE)
