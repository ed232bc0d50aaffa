"""The embedded sample of Fashion-MNIST: the first 1,000 training and 200 test images of each class.

It is part of the package (MIT license, see NOTICE).
"""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

import numpy as np
import torch

from spikeguard.data.images import Images
from spikeguard.errors import UserError

PATH = Path(__file__).with_name("fashion_sample.xz")
SHA256 = "d5b91c929ef64cdf3fac6a13820932f698037ef77030a9584f3d6499a1ccee00"
TRAIN, TEST, SIDE = 10_000, 2_000, 28


def read(path: Path = PATH) -> tuple[Images, Images]:
    """Read training and test images; raises UserError if the file is missing or altered."""
    try:
        raw = lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise UserError(
            f"embedded sample {path.name} cannot be read ({error}): reinstall spikeguard"
        ) from error
    if hashlib.sha256(raw).hexdigest() != SHA256:
        raise UserError(f"embedded sample {path.name} is altered (wrong checksum): reinstall spikeguard")
    sets, at = [], 0
    for count in (TRAIN, TEST):
        pixels = np.frombuffer(raw, np.uint8, count * SIDE * SIDE, at).reshape(count, 1, SIDE, SIDE)
        at += pixels.size
        labels = np.frombuffer(raw, np.uint8, count, at)
        at += count
        sets.append(Images.of(torch.from_numpy(pixels.copy()), torch.from_numpy(labels.copy())))
    return sets[0], sets[1]
