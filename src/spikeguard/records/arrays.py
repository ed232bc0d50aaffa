"""Files of arrays (npz) that strangers hand in: what they hold is read from their headers before any of it.

Nothing is unpickled, and nothing is unpacked that is larger than what was announced and allowed.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from spikeguard.errors import UserError
from spikeguard.records.files import read_bytes

Array = NDArray[np.generic]
SMALL = 2**26  # bytes that any file may unpack to
RATIO = 100  # a larger one only to so many times its own size; images and states stay far below
LARGEST = 2**34  # bytes of the file itself
FLOATING = "floating"  # any dtype of real numbers
FAULTS = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,  # an unknown compression
    RuntimeError,  # an encrypted file
    TypeError,
    SyntaxError,  # a damaged header
    MemoryError,
    OverflowError,
)


def read_arrays(path: Path, kinds: Mapping[str, str], what: str) -> dict[str, Array]:
    """The arrays of a file, by name. ``kinds``: their dtypes, such as ``{"rows": "int64"}``.

    UserError that says the file holds no ``what``: it is missing or damaged, holds other arrays or other
    dtypes, or would unpack to far more than its size.
    """
    content = read_bytes(path, LARGEST)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as held:
            _check_size(held, len(content))
            return {name: _read(held, name, kind) for name, kind in kinds.items()}
    except FAULTS as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise UserError(f"{path} holds no {what} ({said})") from error


def _check_size(held: zipfile.ZipFile, size: int) -> None:
    """ValueError if the file would unpack to more than is allowed."""
    unpacked = sum(entry.file_size for entry in held.infolist())
    if unpacked > max(SMALL, RATIO * size):
        raise ValueError(
            f"{size / 2**20:.1f} MiB that would unpack to {unpacked / 2**20:.0f} MiB, more than {RATIO} "
            "times as much"
        )


def _read(held: zipfile.ZipFile, name: str, kind: str) -> Array:
    """One array; its header is compared with what follows before memory is taken for it."""
    entry = held.getinfo(f"{name}.npy")
    with held.open(entry) as file:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name}: an unknown version of the format")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        header = file.seek(0, io.SEEK_CUR)
        if not np.issubdtype(dtype, np.floating) if kind == FLOATING else dtype != np.dtype(kind):
            raise ValueError(f"{name} is {dtype}, must be {kind}")
        count = 1
        for size in shape:
            count *= size
        if min(shape, default=1) < 0 or header + count * dtype.itemsize != entry.file_size:
            raise ValueError(f"{name}: its size is not that of its shape {shape}")
        flat = np.frombuffer(bytearray(file.read()), dtype)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def read_note(path: Path, name: str) -> str | None:
    """A text beside the arrays of a file that ``read_arrays`` has accepted, None if there is none."""
    with zipfile.ZipFile(io.BytesIO(read_bytes(path, LARGEST))) as held:
        if name not in held.namelist():
            return None
        return held.read(name).decode(errors="replace")
