"""Files of records: JSON objects with a version. They appear by rename, so that none is ever half-written.

Lists of numbers take one line, and so does whatever is short, so that people can read a record. A record
carries a digest of itself, so that an accident on the disk or in an editor is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from spikeguard.errors import UserError
from spikeguard.records.plain import plain as plain

fcntl = import_module("fcntl") if find_spec("fcntl") else None
"""Locks; without them (Windows) files of processes that were killed stay."""

SCHEMA = 2
WIDTH = 110  # characters that an object or list on one line may take
MOST = 2**28  # bytes of a record or a recipe; a study of a thousand networks takes a hundredth of it
_UNFINISHED = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # what mkstemp makes of ``.NAME.``
_SUFFIXES = (".json", ".jsonl", ".npz", ".safetensors", ".html", ".svg", ".csv", ".tex", ".md", ".txt")


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a file that takes its name only when it is whole; a symbolic link stays one.

    UserError if the disk does not allow it, or if a folder, a pipe or a device has the name.
    """
    check_writable(path)
    try:
        path = Path(os.path.realpath(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path.parent, path.name)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                _lock(file.fileno())
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        raise UserError(f"cannot write {path}: {_reason(error)}; nothing half-written was left") from error


def folder_of_results(out: str | Path, who: str) -> Path:
    """The folder a user names; UserError for an empty name, which would be the current folder."""
    if not str(out).strip():
        raise UserError(f"{who}: out = {str(out)!r} names nothing, must name a folder")
    return Path(out)


def check_writable(path: Path) -> None:
    """UserError if a file cannot be written there, as far as can be said before the work for it begins."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot write {path}: not a regular file")
        folder = next(folder for folder in path.parents if os.path.lexists(folder))
        if not folder.is_dir():
            raise UserError(f"cannot write {path}: {folder} is no folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"cannot write {path}: no permission to write in {folder}")
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {_reason(error)}") from error


def _reason(error: OSError | ValueError) -> object:
    return error.strerror or error if isinstance(error, OSError) else error


def remove_unfinished(folder: Path, name: str | None = None) -> None:
    """Remove what a process that was killed while it wrote has left: of one file, or of all in a folder.

    A file that another process is writing now is locked, and stays.
    """
    if fcntl is None or not folder.is_dir():
        return
    for file in os.listdir(folder):
        match = _UNFINISHED.fullmatch(file)
        if match is None or (match[1] != name if name else not match[1].endswith(_SUFFIXES)):
            continue
        try:
            with open(folder / file, "rb") as held:
                if _lock(held.fileno()):
                    os.unlink(folder / file)
        except OSError:  # it has just been renamed, or is not ours
            continue


def _lock(handle: int) -> bool:
    """Lock an open file until it is closed; False if another process holds the lock."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    write_atomic(path, lambda file: file.write(content))


def write_json(path: Path, record: Mapping[str, object], digest: bool = False) -> None:
    """Write a record atomically, with a digest of itself if ``digest``."""
    values = plain(record)
    whole = {**values, "digest": digest_of(values)} if digest else values
    write_bytes(path, (compact(whole) + "\n").encode())


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


def digest_of(values: Mapping[str, object]) -> str:
    """The first 16 digits of a hash of a record's values, in whatever order and layout they are written."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_bytes(path: Path, most: int = MOST) -> bytes:
    """The contents of a file; UserError if it is missing, not a regular file or larger than ``most`` bytes.

    A pipe or a device would be read without an end.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"cannot read {path}: not a regular file")
        if about.st_size > most:
            raise UserError(
                f"cannot read {path}: it has {about.st_size / 2**20:.0f} MiB, at most "
                f"{most / 2**20:.0f} are allowed"
            )
        return path.read_bytes()
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a mark; UserError as ``read_bytes``, or if it is none."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: it is no text in UTF-8 ({error.reason})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a record, without its digest.

    UserError if it is missing, no JSON object, of a later schema, or not as it was written.
    """
    record, intact = read_even_changed(path)
    if not intact:
        raise UserError(f"{path} {CHANGED}")
    return record


CHANGED = "was changed or damaged after it was written: its digest is another"


def read_even_changed(path: Path) -> tuple[dict[str, Any], bool]:
    """A record without its digest, and whether it is as it was written. Older ones have no digest."""
    try:
        record = json.loads(read_text(path))
    except RecursionError as error:
        raise UserError(f"{path} is not valid JSON (nested too deeply)") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(record, dict) or type(record.get("schema", SCHEMA)) is not int:
        raise UserError(f"{path} is not a spikeguard record")
    if record.get("schema", SCHEMA) > SCHEMA:
        raise UserError(
            f"{path} has schema {record['schema']}; this version reads up to {SCHEMA}: update spikeguard"
        )
    written = record.pop("digest", None)
    return record, written is None or written == digest_of(record)
