"""Images of the user's own: a folder of pictures, or arrays in ``.npz`` and ``.npy`` files.

Pictures lie in one folder a class, ``FOLDER/CLASS/*.png``, or in ``FOLDER/train/CLASS`` and
``FOLDER/test/CLASS``; classes and files are sorted by name. Arrays are ``x`` and ``y`` (or ``images`` and
``labels``), with ``_train`` and ``_test`` behind the name where there are two parts: members of an ``.npz``,
or files in a folder. Without parts all images are test images. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spikeguard.arguments import error_line
from spikeguard.data.images import Dataset, Images
from spikeguard.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
NAMES = (("x", "y"), ("images", "labels"))
MOST = 2**32
"""Bytes of all pixels that are read."""
MODES = {
    "1": "L",
    "L": "L",
    "LA": "L",
    "P": "RGB",
    "RGB": "RGB",
    "RGBA": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
}
"""Modes of pictures with eight bits a channel, and what they are read as."""
CHANNELS = (1, 2, 3, 4)
Array = np.ndarray[Any, np.dtype[Any]]
Pair = tuple[Tensor, Tensor, tuple[str, ...]]
"""Images, labels, names of the classes."""


def is_own(name: str) -> bool:
    """Whether a name of data is a path: one that is there, or text that no data set has as a name."""
    return Path(name).exists() or "/" in name or "\\" in name or name.endswith((".npz", ".npy"))


def own_data(path: Path) -> Dataset:
    """The images in a folder or an ``.npz`` file; UserError names what is wrong and what is wanted."""
    if not path.exists():
        raise UserError(f"no data at {path}: name a folder of images or an .npz file")
    parts = _of_folder(path) if path.is_dir() else _of_arrays(_npz(path), str(path))
    names = next(iter(parts.values()))[2]
    count = max(len(names), *(int(y.max()) + 1 for _, y, _ in parts.values()))
    classes = names or tuple(f"class {c}" for c in range(count))
    sets = {part: _checked(x, y, f"{path}: {part} images") for part, (x, y, _) in parts.items()}
    shapes = {tuple(held.x.shape[1:]) for held in sets.values()}
    if len(shapes) > 1:
        raise UserError(f"{path}: training and test images differ in shape: {' and '.join(map(str, shapes))}")
    test = sets["test"]
    train = sets.get("train", test.select(torch.arange(0, device="cpu")))
    mean, std = _statistics(train if len(train) else test)
    return Dataset(str(path), train, test, classes, mean, std, _digest(train, test))


def _digest(*parts: Images) -> str:
    total = hashlib.sha256()
    for part in parts:
        for t in (part.x, part.y):
            total.update(str((tuple(t.shape), t.dtype)).encode())
            total.update(t.contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def _statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel, in [0, 1]; a constant channel has deviation 1."""
    by_channel = images.pixels().transpose(0, -3).flatten(1).double()
    mean, std = by_channel.mean(1), by_channel.std(1, correction=0)
    return tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())


def _checked(x: Tensor, y: Tensor, where: str) -> Images:
    if not len(x):
        raise UserError(f"{where}: there are none")
    if len(x) != len(y):
        raise UserError(f"{where}: {len(x)}, but {len(y)} labels")
    if int(y.min()) < 0:
        raise UserError(f"{where}: the label {int(y.min())} must be at least 0")
    return Images.of(x, y)


# pictures


def _of_folder(path: Path) -> dict[str, Pair]:
    if any(path.glob("data_batch_*")) and (path / "batches.meta").exists():
        raise UserError(
            f"{path} holds CIFAR-10 as pickles, which are never loaded: use --data cifar10 with the binary "
            "version (data_batch_1.bin ...; spikeguard train --download fetches it)"
        )
    if arrays := sorted(path.glob("*.npy")):
        return _of_arrays({file.stem: _npy(file) for file in arrays}, str(path))
    parts = [part for part in ("train", "test") if (path / part).is_dir()]
    if not parts:
        return {"test": _pictures(path)}
    if parts != ["train", "test"]:
        raise UserError(f"{path} has a folder {parts[0]!r}, must have both train and test, or neither")
    read = {part: _pictures(path / part) for part in parts}
    if read["train"][2] != read["test"][2]:
        raise UserError(f"{path}: the classes in train and test differ")
    return read


def _pictures(path: Path) -> Pair:
    """All pictures of a folder with one folder a class."""
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [(p, c) for c, folder in enumerate(classes) for p in _files(folder)]
    if not files:
        raise UserError(
            f"{path} has no images: must hold one folder of images a class ({', '.join(SUFFIXES[:4])} ...) "
            "or arrays x.npy and y.npy"
        )
    if empty := sorted(set(range(len(classes))) - {c for _, c in files}):
        raise UserError(f"{classes[empty[0]]} holds no images")
    gray = all(_is_gray(file) for file, _ in files)
    pixels, first = list[Array](), files[0][0]
    for file, _ in files:
        one = _picture(file, "L" if gray else "RGB")
        if pixels and one.shape != pixels[0].shape:
            raise UserError(
                f"{file} is {one.shape[1]} x {one.shape[0]}, {first} is {pixels[0].shape[1]} x "
                f"{pixels[0].shape[0]}: all images must have one size"
            )
        pixels.append(one)
        if one.size * len(files) > MOST:
            raise UserError(f"{path}: its {len(files)} images take more than {MOST / 2**30:.0f} GiB")
    x = torch.from_numpy(np.stack(pixels)).view(len(files), *pixels[0].shape[:2], -1).permute(0, 3, 1, 2)
    y = torch.tensor([c for _, c in files], dtype=torch.int64, device="cpu")
    return x.contiguous(), y, tuple(folder.name for folder in classes)


def _files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
            yield file


def _is_gray(file: Path) -> bool:
    with _opened(file) as picture:
        return _mode(picture, file) == "L"


def _picture(file: Path, mode: str) -> Array:
    with _opened(file) as picture:
        _mode(picture, file)
        try:
            return np.array(picture.convert(mode), np.uint8)
        except Exception as error:  # a decoder of Pillow may raise anything
            raise UserError(f"{file} cannot be read ({error_line(error)})") from error


def _mode(picture: Image.Image, file: Path) -> str:
    if picture.mode not in MODES:
        raise UserError(f"{file} has mode {picture.mode}, must have eight bits a channel")
    return MODES[picture.mode]


def _opened(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except Exception as error:  # as above
        raise UserError(f"{file} cannot be read as an image ({error_line(error)})") from error


# arrays


def _npz(path: Path) -> dict[str, Array]:
    if path.suffix == ".npy":
        raise UserError(f"{path} is one array: name the folder of x.npy and y.npy, or an .npz file with both")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > MOST:
                raise UserError(f"{path} unpacks to more than {MOST / 2**30:.0f} GiB")
        with np.load(path, allow_pickle=False) as held:
            if not isinstance(held, np.lib.npyio.NpzFile):
                raise UserError(f"{path} is no .npz file")
            return {name: held[name] for name in held.files if _role(name)}
    except UserError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); nothing is unpickled: arrays must hold numbers"
        ) from error


def _npy(path: Path) -> Array:
    try:
        array: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); nothing is unpickled: arrays must hold numbers"
        ) from error
    return array


def _role(name: str) -> tuple[str, str] | None:
    """'x' or 'y' and the part that an array's name says, None for another array."""
    for images, labels in NAMES:
        for stem, role in ((images, "x"), (labels, "y")):
            for part in ("train", "test"):
                if name in (f"{stem}_{part}", f"{part}_{stem}"):
                    return role, part
            if name == stem:
                return role, "test"
    return None


def _of_arrays(arrays: Mapping[str, Array], where: str) -> dict[str, Pair]:
    found: dict[tuple[str, str], tuple[str, Array]] = {}
    for name, array in arrays.items():
        if (role := _role(name)) is not None:
            if role in found:
                raise UserError(f"{where}: {found[role][0]} and {name} both hold {role[1]} {role[0]}")
            found[role] = (name, array)
    parts = [part for part in ("train", "test") if ("x", part) in found and ("y", part) in found]
    if "test" not in parts or len(found) != 2 * len(parts):
        raise UserError(
            f"{where} holds {', '.join(sorted(arrays)) or 'no array'}, must hold x and y (or images and "
            "labels), or x_train, y_train, x_test and y_test"
        )
    return {
        part: (_images(*found["x", part], where), _labels(*found["y", part], where), ()) for part in parts
    }


def _images(name: str, array: Array, where: str) -> Tensor:
    """Images ``[N, C, H, W]`` or events ``[N, T, C, H, W]``, uint8 or float32 in [0, 1]."""
    where = f"{where}: {name}"
    if array.dtype.kind == "f":
        pixels = torch.from_numpy(np.ascontiguousarray(array, np.float32))
        low, high = (float(pixels.min()), float(pixels.max())) if array.size else (0.0, 0.0)
        if not (low >= 0 and high <= 1):
            raise UserError(f"{where} lies in [{low:.3g}, {high:.3g}], floats must lie in [0, 1]")
    elif array.dtype == np.uint8:
        pixels = torch.from_numpy(np.ascontiguousarray(array))
    else:
        raise UserError(f"{where} is {array.dtype}, must be uint8 or floats in [0, 1]")
    if array.ndim == 3:
        return pixels[:, None]
    if array.ndim not in (4, 5):
        raise UserError(
            f"{where} has shape {array.shape}, must be [N, C, H, W], [N, H, W, C] or [N, T, C, H, W]"
        )
    first, last = array.shape[-3] in CHANNELS, array.shape[-1] in CHANNELS
    if first and last and array.ndim == 4:
        raise UserError(
            f"{where} has shape {array.shape}: which dimension the channels are is in doubt; save it as "
            "floats or bytes [N, C, H, W] with W above 4"
        )
    return pixels.movedim(-1, -3).contiguous() if last and not first else pixels


def _labels(name: str, array: Array, where: str) -> Tensor:
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise UserError(
            f"{where}: {name} is {array.dtype} of shape {array.shape}, must be one whole number an image"
        )
    return torch.from_numpy(array.astype(np.int64))
