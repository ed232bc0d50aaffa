"""Files of records: JSON objects with a version. They appear by rename, so that none is ever half-written.

Lists of numbers take one line, and so does whatever is short, so that people can read a record.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from spikeguard.errors import UserError
from spikeguard.records.plain import plain as plain

SCHEMA = 2
WIDTH = 110  # characters that an object or list on one line may take


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


def write_json(path: Path, record: Mapping[str, object]) -> None:
    """Write a record atomically."""
    write_bytes(path, (compact(plain(record)) + "\n").encode())


def compact(value: object, indent: int = 0) -> str:
    """JSON text in which lists of numbers and short values take one line."""
    line = json.dumps(value, allow_nan=False)
    if not isinstance(value, (dict, list)) or len(line) + indent <= WIDTH:
        return line
    if isinstance(value, list) and not any(isinstance(v, (dict, list)) for v in value):
        return line
    inner, space = indent + 1, " " * (indent + 1)
    if isinstance(value, dict):
        rows = [f"{space}{json.dumps(k)}: {compact(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"
    rows = [space + compact(v, inner) for v in value]
    return "[\n" + ",\n".join(rows) + "\n" + " " * indent + "]"


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
