"""What a result depends on besides the code."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from spikeguard.runtime.version import __version__


@dataclass(frozen=True)
class Machine:
    """Package versions, processor, cores, matrix instructions; ``device``: the GPU, if one is used."""

    versions: dict[str, str]
    processor: str
    cores: int | None
    instructions: tuple[str, ...]
    device: str | None = None


@lru_cache(maxsize=1)
def machine() -> Machine:
    """The machine that this process runs on."""
    versions = {"python": platform.python_version(), "spikeguard": __version__}
    for package in ("torch", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    has = tuple(f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f in flags.split())
    return Machine(versions, platform.machine(), os.cpu_count(), has)
