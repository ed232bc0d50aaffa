"""Builds ``neuron.cpp`` for a combination of macros: once, kept on disk, safe beside other processes."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from spikeguard.kernels import compiler

log = logging.getLogger("spikeguard")

SOURCE = Path(__file__).with_name("neuron.cpp")
FLAGS = [
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fopenmp",
]
LEVELS = (
    ["-O3", "-fno-tree-slp-vectorize"],
    ["-O1"],
)  # the second where a compiler breaks down over the first; the bits are the same
FORWARD, BACKWARD, SMALL = 1, 2, 3
_ZERO = {
    "HARD",
    "DETACH",
    "NOISE",
    "BAND",
    "NORM",
    "POOL",
    "WANT_U",
    "G_U",
    "G_BAND",
    "SHARP",
    "SCALARS",
    "AFFINE",
    "OWN",
    "MOVING",
    "G_OWN",
}


class Args(ctypes.Structure):
    """``struct Args`` of the source, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("samples", "rows", "length", "height", "width", "threads")),
        *(
            (name, ctypes.c_float)
            for name in ("decay", "threshold", "start", "sigma", "delta", "sharpness", "noise_band")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in ("current", "g_spikes", "spikes", "g_current", "other", "u", "g_u", "sharp", "g_band")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "scale",
                "shift",
                "mean",
                "decays",
                "rate",
                "goal",
                "g_decays",
                "g_rate",
                "keys",
                "sums",
            )
        ),
    ]


def use(elements: int) -> bool:
    """Is a layer of this many numbers worth a library, and can one be built? A function of the size alone."""
    return elements >= compiler.WORTHWHILE and verdict()[0]


def path(device: str = "cpu") -> str:
    """The path that large layers take there: 'native' (this file), 'compiled' (by torch) or 'eager'."""
    return "native" if device == "cpu" and verdict()[0] else compiler.path(device)


@cache
def verdict() -> tuple[bool, str]:
    """Can libraries be built and called? If not, the reason. Checked once.

    ``SPIKEGUARD_COMPILE=0`` turns it off.
    """
    if os.environ.get("SPIKEGUARD_COMPILE", "1") == "0":
        return False, "switched off by SPIKEGUARD_COMPILE=0"
    if not sys.platform.startswith("linux"):
        return False, "only tried on Linux"
    try:
        function("adapt", SMALL, "u", STEPS=1, CONSTANT=0, BFLOAT16=0, INNER=0)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        detail = error.stderr.strip().splitlines() if isinstance(error, subprocess.CalledProcessError) else []
        return False, (detail[0] if detail else str(error))[:160]
    return True, ""


@cache
def function(name: str, which: int, derivative: str, **flags: int) -> Callable[[object], None]:
    """A function of the library for these macros; those not named are 0."""
    found = getattr(
        _library(which, derivative, tuple(sorted({**dict.fromkeys(_ZERO, 0), **flags}.items()))), name
    )
    found.argtypes, found.restype = [ctypes.c_void_p], None
    called: Callable[[object], None] = found
    return called


@cache
def _library(which: int, derivative: str, flags: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
    macros = [f"-DPASS={which}", *(f"-D{k}={v}" for k, v in flags), f"-DDERIVATIVE={derivative}"]
    compiler_path, openmp = _compiler(), _openmp()
    parts = [
        SOURCE.read_text(),
        " ".join(LEVELS[0] + FLAGS),
        " ".join(macros),
        openmp,
        _target(compiler_path),
    ]
    path = folder() / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}.so"
    if not path.exists():
        handle, fresh = tempfile.mkstemp(dir=path.parent, suffix=".so")
        os.close(handle)
        try:
            _compile([compiler_path, *FLAGS, *macros, str(SOURCE), "-o", fresh, openmp])
            os.replace(fresh, path)
        finally:
            Path(fresh).unlink(missing_ok=True)
    return ctypes.CDLL(str(path))


def _compile(command: list[str]) -> None:
    for level in LEVELS:
        done = subprocess.run([*command, *level], capture_output=True, text=True, timeout=120)
        if done.returncode == 0:
            return
        log.debug("%s: %s", " ".join(level), done.stderr.strip()[:500])
    raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)


def _compiler() -> str:
    path = shutil.which(os.environ.get("CXX", "g++"))
    if path is None:
        raise OSError("no C++ compiler found (g++; on Debian and Ubuntu: apt install g++)")
    return path


@cache
def _target(compiler_path: str) -> str:
    """The compiler and its target processor: a library of one machine may not run on another."""
    done = subprocess.run(
        [compiler_path, "-march=native", "-dM", "-E", "-x", "c++", os.devnull],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout


@cache
def _openmp() -> str:
    """The OpenMP library that torch uses; threads of a second one would keep a core busy while they wait."""
    maps = Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else ""
    found = re.search(r"(/\S*libgomp\S*\.so\S*)", maps)
    return found[1] if found else "-lgomp"


@cache
def folder() -> Path:
    """The folder of libraries: SPIKEGUARD_CACHE, else the user's cache, else a temporary one."""
    base = os.environ.get("SPIKEGUARD_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "spikeguard"
    )
    path = Path(base) / "kernels"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.stat().st_uid == os.getuid() and os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="spikeguard-kernels-"))
