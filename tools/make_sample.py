"""Make the embedded sample from full Fashion-MNIST, and check it.

    python tools/make_sample.py FOLDER_WITH_IDX_FILES

The first 1,000 training and 200 test images of each class, in their official order, as one xz file of raw
bytes: training images, training labels, test images, test labels.
"""

import hashlib
import lzma
import sys

import numpy as np

from spikeguard.data.sample import PATH, SHA256
from spikeguard.data.sources import load_data


def main(folder: str) -> None:
    data = load_data("fashion-mnist", folder)
    parts = []
    for images, each in ((data.train, 1000), (data.test, 200)):
        y = images.y.numpy()
        chosen = np.sort(np.concatenate([np.flatnonzero(y == c)[:each] for c in range(10)]))
        parts += [images.x.numpy()[chosen].tobytes(), y[chosen].astype(np.uint8).tobytes()]
    raw = b"".join(parts)
    digest = hashlib.sha256(raw).hexdigest()
    print(digest, "as in the code" if digest == SHA256 else "NOT as in the code")
    PATH.write_bytes(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    main(sys.argv[1])
