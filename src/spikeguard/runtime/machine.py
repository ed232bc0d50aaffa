"""What a result depends on besides the code."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


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
    return {
        "versions": versions,
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "instructions": has,
    }
