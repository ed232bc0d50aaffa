"""Records: how results are written down. No torch here.

A record is a versioned JSON object. Files appear by rename, so that none is ever seen half-written.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from spikeguard.errors import UserError

SCHEMA = 1


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a file that takes its name only when it is whole; UserError if the disk does not allow it."""
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
        raise UserError(f"cannot write {path}: {error.strerror or error}; nothing half-written was left") from error


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
        raise UserError(f"{path} has schema {record['schema']}; this version reads up to {SCHEMA}: update spikeguard")
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


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson score), as fractions."""
    if total == 0:
        return 0.0, 1.0
    p, n = right / total, float(total)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


ALPHA = 0.01  # from this p on, a paired test says nothing


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of a paired test: samples where only one of two outcomes holds fall on either side with equal chance."""
    total, low = only_first + only_second, min(only_first, only_second)
    tail: float = sum(math.comb(total, k) for k in range(low + 1)) / 2**total
    return min(1.0, 2 * tail)


def share_above(count: int, total: int) -> float:
    """One-sided 95 % lower bound of a share (exact, Clopper and Pearson)."""
    if count == 0:
        return 0.0
    low, high = 0.0, count / total
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_least(count, total, middle) < 0.05 else (low, middle)
    return low


def _at_least(count: int, total: int, p: float) -> float:
    """P(X >= count) for a binomial X."""
    if not 0 < p < 1:
        return float(p >= 1)
    ways = math.lgamma(total + 1)
    logs = (ways - math.lgamma(k + 1) - math.lgamma(total - k + 1) + k * math.log(p) + (total - k) * math.log1p(-p) for k in range(count))
    return 1.0 - math.fsum(math.exp(v) for v in logs)


@lru_cache(maxsize=1)
def machine() -> dict[str, Any]:
    """What a result depends on besides the code: versions, processor, matrix instructions."""
    versions = {"python": platform.python_version()}
    for package in ("spikeguard", "torch", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    has = [f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f in flags.split()]
    return {"versions": versions, "processor": platform.machine(), "cores": os.cpu_count(), "instructions": has}
