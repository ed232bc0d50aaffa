"""Data sets by name: where their files are, how they are verified and read.

Every file is verified by the sha256 of its uncompressed bytes. Archives are read in place; nothing is
unpickled.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from spikeguard.arguments import checked, shown
from spikeguard.data import sample
from spikeguard.data.fetch import fetch
from spikeguard.data.images import Dataset, Images
from spikeguard.data.own import is_own, own_data
from spikeguard.data.packed import Packed
from spikeguard.errors import UserError, unknown
from spikeguard.records.files import read_bytes
from spikeguard.registry import Registry

FASHION = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LARGEST = 2**28
"""Bytes of a file; the largest official one has 154 MB."""
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Source:
    """The files of one data set.

    ``train`` and ``test``: name -> sha256 of the contents; ``read``: from the contents to images;
    ``subfolders`` and ``system``: further places of the files; ``downloads``: files to fetch from ``url``;
    ``packed``: how a file may also lie there, as pictures.

    >>> source = sg.data.DATA["fashion-mnist"]
    >>> sorted(source.test), len(source.classes)
    (['t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'], 10)
    """

    train: dict[str, str]
    test: dict[str, str]
    read: Callable[[list[bytes]], Images]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    url: str
    downloads: tuple[str, ...]
    subfolders: tuple[str, ...] = ()
    system: tuple[Path, ...] = ()
    packed: Mapping[str, Packed] = field(default_factory=dict)


def _idx(files: list[bytes]) -> Images:
    pixels = np.frombuffer(files[0], np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return Images.of(
        torch.from_numpy(pixels.copy()), torch.from_numpy(np.frombuffer(files[1], np.uint8, offset=8).copy())
    )


def _cifar(labels: int) -> Callable[[list[bytes]], Images]:
    def read(files: list[bytes]) -> Images:
        rows = np.frombuffer(b"".join(files), np.uint8).reshape(-1, labels + 3072)
        pixels = rows[:, labels:].reshape(-1, 3, 32, 32)
        return Images.of(torch.from_numpy(pixels.copy()), torch.from_numpy(rows[:, labels - 1].copy()))

    return read


SOURCES: dict[str, Source] = {
    "fashion-mnist": Source(
        train={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        },
        test={
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        read=_idx,
        classes=FASHION,
        mean=(0.2860,),
        std=(0.3530,),
        url="https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        downloads=tuple(
            f"{name}-ubyte.gz"
            for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
        ),
        subfolders=("fashion-mnist",),
        system=(DEBIAN,),
    ),
    "cifar10": Source(
        train={
            "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        },
        test={"test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"},
        read=_cifar(1),
        classes=CIFAR10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        url="https://www.cs.toronto.edu/~kriz/",
        downloads=("cifar-10-binary.tar.gz",),
        subfolders=("cifar-10-batches-bin", "cifar10"),
        packed={
            **{
                f"data_batch_{k + 1}.bin": Packed((f"train_{k + 1}.webp",), ("train",), 10_000 * k)
                for k in range(5)
            },
            "test_batch.bin": Packed(("test.webp",), ("test",)),
        },
    ),
    "cifar100": Source(
        train={"train.bin": "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29"},
        test={"test.bin": "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a"},
        read=_cifar(2),
        classes=tuple(f"class {c}" for c in range(100)),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        url="https://www.cs.toronto.edu/~kriz/",
        downloads=("cifar-100-binary.tar.gz",),
        subfolders=("cifar-100-binary", "cifar100"),
        packed={
            "train.bin": Packed(tuple(f"train_{k + 1}.webp" for k in range(5)), ("train_coarse", "train")),
            "test.bin": Packed(("test.webp",), ("test_coarse", "test")),
        },
    ),
}
Reader = Callable[[Path | None], Dataset]
"""From the folder that a user names, None without one, to a data set."""


def _embedded(folder: Path | None = None) -> Dataset:
    """Part of the package."""
    train, test = sample.read()
    fashion = SOURCES["fashion-mnist"]
    return Dataset("embedded", train, test, fashion.classes, fashion.mean, fashion.std)


DATA: Registry[Source | Reader] = Registry("data set", {"embedded": _embedded, **SOURCES})
"""Every data set by name; ``sg.register`` adds to it."""


@checked
def load_data(name: str, folder: str | Path | None = None, download: bool = False) -> Dataset:
    """Load a data set: 'embedded' (part of the package), 'fashion-mnist', 'cifar10' or 'cifar100', one that
    ``sg.register`` added, or images by path: a folder with one folder a class, or an ``.npz`` file with ``x``
    and ``y``.

    Files are read from ``folder``, else from ``$SPIKEGUARD_DATA``, else from where the system has them;
    ``download`` fetches missing ones. Images are uint8 ``[N, C, H, W]``; ``pixels()`` gives floats in [0, 1].

    Raises UserError, which names the file, if one is missing, truncated or altered.

    >>> data = sg.load_data("embedded")
    >>> len(data.train), len(data.test), data.in_shape, data.classes[0]
    (10000, 2000, (1, 28, 28), 'T-shirt/top')
    >>> some = data.test.balanced(20)
    >>> some.pixels().shape, int(some.y.bincount().min())
    (torch.Size([20, 1, 28, 28]), 2)
    """
    if name not in DATA:
        if is_own(name):
            return own_data(Path(name))
        raise unknown("data set", name, DATA, more="; or a folder of images, or an .npz file")
    given = folder or os.environ.get("SPIKEGUARD_DATA")
    if given and name != "embedded" and not Path(given).is_dir() and not download:
        raise UserError(f"data folder {given} does not exist")
    if name in DATA.added:
        return _registered(name, None if given is None else Path(given), download)
    return _load(name, str(given) if given else None, download)


def _registered(name: str, folder: Path | None, download: bool) -> Dataset:
    """A data set of the user's own; UserError if what its function returns is none."""
    held = DATA[name]
    if isinstance(held, Source):
        return _read(name, held, None if folder is None else str(folder), download)
    made = held(folder)
    if not isinstance(made, Dataset):
        raise UserError(f"data set {name!r}: its function returned {shown(made)}, must return a Dataset")
    return replace(made.checked(), name=name)


@lru_cache(maxsize=2)
def _load(name: str, folder: str | None, download: bool) -> Dataset:
    held = DATA[name]
    return _read(name, held, folder, download) if isinstance(held, Source) else held(None)


def _read(name: str, source: Source, folder: str | None, download: bool) -> Dataset:
    places = (
        [Path(folder)]
        if folder
        else [*source.system, Path(os.path.expanduser("~")) / ".cache" / "spikeguard"]
    )
    if download and not any(_complete(source, place) for place in places):
        for file in source.downloads:
            fetch(source.url + file, places[-1] / file)
    train, test = (
        source.read([_find(name, file, digest, source, places) for file, digest in part.items()])
        for part in (source.train, source.test)
    )
    return Dataset(name, train, test, source.classes, source.mean, source.std)


def _complete(source: Source, place: Path) -> bool:
    return all(any(True for _ in _copies(file, source, place)) for file in {**source.train, **source.test})


def _copies(file: str, source: Source, place: Path) -> Iterator[tuple[Path, Callable[[], bytes]]]:
    """Yield every copy of a file: plain, gzipped, packed, or inside the official archive."""
    for folder in (place, *(place / s for s in source.subfolders)):
        if (path := folder / file).is_file():
            yield path, partial(read_bytes, path, LARGEST)
        if (path := folder / f"{file}.gz").is_file():
            yield path, partial(_unzipped, path)
        if (packed := source.packed.get(file)) and packed.lies_in(folder):
            yield folder / packed.pictures[0], partial(packed.content, folder)
    for archive in source.downloads:
        if archive.endswith(".tar.gz") and (path := place / archive).is_file():
            yield path, partial(_member, path, file)


def _unzipped(path: Path) -> bytes:
    with gzip.open(path) as unzipped:
        content = unzipped.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise _too_large(path)
    return content


def _too_large(path: Path) -> UserError:
    return UserError(f"{path} unpacks to more than {LARGEST / 2**20:.0f} MiB: it is not the official file")


def _bounded(unzipped: gzip.GzipFile, path: Path) -> io.BytesIO:
    """What an archive unpacks to, up to some times the largest official file; more is a UserError."""
    content, most = io.BytesIO(), 4 * LARGEST
    while block := unzipped.read(2**20):
        content.write(block)
        most -= len(block)
        if most < 0:
            raise _too_large(path)
    content.seek(0)
    return content


def _member(archive: Path, file: str) -> bytes:
    with gzip.open(archive) as unzipped, tarfile.open(fileobj=_bounded(unzipped, archive)) as tar:
        for member in tar:
            if member.isfile() and Path(member.name).name == file:
                extracted = tar.extractfile(member)
                assert extracted is not None
                content = extracted.read()
                if len(content) > LARGEST:
                    raise _too_large(archive)
                return content
    raise UserError(f"{archive} holds no {file}")


def _find(name: str, file: str, digest: str, source: Source, places: list[Path]) -> bytes:
    for place in places:
        for path, read in _copies(file, source, place):
            try:
                content = read()
            except UserError:
                raise
            except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
                raise UserError(
                    f"{path} cannot be read ({error}): it is truncated or altered; download it again"
                ) from error
            if hashlib.sha256(content).hexdigest() != digest:
                raise UserError(
                    f"{path} is truncated or altered (wrong checksum of {file}): download it again"
                )
            return content
    where = " or ".join(str(p) for p in places)
    raise UserError(
        f"{name}: no {file} in {where}; name its folder with --data-dir or SPIKEGUARD_DATA, or add --download"
    )
