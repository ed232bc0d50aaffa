"""Builds ``neuron.cpp`` for a combination of macros: once, kept on disk, safe beside other processes."""

from __future__ import annotations

import atexit
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

from spikeguard.errors import UserError
from spikeguard.kernels import compiler
from spikeguard.records.files import write_bytes

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
BAND_SIDES = {"both": 1, "below": 2}
"""Values of BAND."""
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


class BuildError(UserError):
    """No library could be built for a kernel: the compiler failed, or what it made cannot be loaded."""


def verdict() -> tuple[bool, str]:
    """Can libraries be built and called? If not, the reason. Checked once, by the largest kernels, too.

    ``SPIKEGUARD_COMPILE=0`` turns it off. A kernel that fails later turns it off for the rest of the process.
    """
    return (False, _failed[0]) if _failed else _probed()


_failed: list[str] = []


@cache
def _probed() -> tuple[bool, str]:
    if os.environ.get("SPIKEGUARD_COMPILE", "1") == "0":
        return False, "switched off by SPIKEGUARD_COMPILE=0"
    if not sys.platform.startswith("linux"):
        return False, "only tried on Linux"
    try:
        function("adapt", SMALL, "u", STEPS=1, CONSTANT=0, BFLOAT16=0, INNER=0)
        large = {"STEPS": 4, "CONSTANT": 0, "BFLOAT16": 0, "INNER": 0, "NORM": 2, "NOISE": 1, "BAND": 1}
        function("forward", FORWARD, "u", **large)
        function("backward", BACKWARD, "u", **large, G_BAND=1, SCALARS=1, AFFINE=1)
    except BuildError as error:
        return False, str(error)[:160]
    return True, ""


@cache
def function(name: str, which: int, derivative: str, **flags: int) -> Callable[[object], None]:
    """A function of the library for these macros; those not named are 0. BuildError if there is none."""
    macros = tuple(sorted({**dict.fromkeys(_ZERO, 0), **flags}.items()))
    try:
        found = getattr(_library(which, derivative, macros), name)
    except (OSError, subprocess.SubprocessError, AttributeError, UserError) as error:
        reason = _reason(error)
        if _probed.cache_info().currsize:  # the kernels that are tried first could be built
            _failed.append(reason)
            log.warning(
                "neurons run without C++ from here on, slower: a kernel could not be built (%s)", reason
            )
        raise BuildError(
            f"a kernel in C++ could not be built ({reason}); SPIKEGUARD_COMPILE=0 does without"
        ) from error
    found.argtypes, found.restype = [ctypes.c_void_p], None
    called: Callable[[object], None] = found
    return called


def _reason(error: Exception) -> str:
    """The first line of what a compiler said, or of the error."""
    said = str(error.stderr) if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[0][:160] if lines else type(error).__name__


@cache
def _library(which: int, derivative: str, flags: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
    """The library on disk, if it is as it was built (its name holds a digest), else a new one."""
    macros = [f"-DPASS={which}", *(f"-D{k}={v}" for k, v in flags), f"-DDERIVATIVE={derivative}"]
    compiler_path, openmp = _compiler(), _openmp()
    parts = [
        SOURCE.read_text(),
        " ".join(LEVELS[0] + FLAGS),
        " ".join(macros),
        openmp,
        _target(compiler_path),
    ]
    stem = hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]
    for path in sorted(folder().glob(f"{stem}-*.so")):
        if path.stem == f"{stem}-{_digest(path.read_bytes())}":
            return ctypes.CDLL(str(path))
        path.unlink(missing_ok=True)  # a damaged one would end the process
    (folder() / f"{stem}.so").unlink(missing_ok=True)  # as version 0.2 named it
    with tempfile.TemporaryDirectory(prefix="spikeguard-build-") as place:
        fresh = Path(place) / "kernel.so"
        _compile([compiler_path, *FLAGS, *macros, str(SOURCE), "-o", str(fresh), openmp])
        content = fresh.read_bytes()
        path = folder() / f"{stem}-{_digest(content)}.so"
        try:
            write_bytes(path, content)
        except UserError:  # no room on the disk: without a cache
            return ctypes.CDLL(str(fresh))
    return ctypes.CDLL(str(path))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _compile(command: list[str]) -> None:
    for level in LEVELS:
        done = subprocess.run(
            [*command, *level], capture_output=True, text=True, errors="replace", timeout=120
        )
        if done.returncode == 0:
            return
        log.debug("%s: %s", " ".join(level), done.stderr.strip()[:500])
    said = done.stderr if done.stderr.strip() else f"the compiler ended with exit code {done.returncode}"
    raise subprocess.CalledProcessError(done.returncode, command, done.stdout, said)


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
    home = os.path.expanduser("~")  # stays as it is where nobody knows the home
    cache_home = (
        os.environ.get("XDG_CACHE_HOME") or (home if home != "~" else tempfile.gettempdir()) + "/.cache"
    )
    base = os.environ.get("SPIKEGUARD_CACHE") or os.path.join(cache_home, "spikeguard")
    path = Path(base) / "kernels"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.stat().st_uid == os.getuid() and os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    made = Path(tempfile.mkdtemp(prefix="spikeguard-kernels-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
