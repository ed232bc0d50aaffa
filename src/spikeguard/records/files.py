"""Records: how results are written down. No torch here.

A record is a versioned JSON object. Files appear by rename, so that none is ever seen half-written.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from spikeguard.errors import UserError

SCHEMA = 1


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a file that takes its name only when it is whole.

    UserError if the disk does not allow it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; nothing half-written was left"
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    write_atomic(path, lambda file: file.write(content))


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record atomically."""
    write_bytes(path, (json.dumps(plain(record), indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a record; UserError if it is missing, no JSON object, or of a later schema."""
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("schema", SCHEMA), int):
        raise UserError(f"{path} is not a spikeguard record")
    if record.get("schema", SCHEMA) > SCHEMA:
        raise UserError(
            f"{path} has schema {record['schema']}; this version reads up to {SCHEMA}: update spikeguard"
        )
    return record


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as JSON values; numbers that are not finite become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
