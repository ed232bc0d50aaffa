"""``spikeguard doctor``: what this machine has."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

from spikeguard.cli import common

FRAMEWORKS = ("spikingjelly", "snntorch", "norse", "sinabs")


def parser() -> common.Parser:
    return common.Parser(
        "doctor", "What this machine has, which path is used, and what each missing part costs."
    )


def run(arguments: list[str]) -> int:
    given = parser().read(arguments)
    common.start(given.threads)
    import torch

    from spikeguard.data.sources import SOURCES, load_data
    from spikeguard.errors import UserError
    from spikeguard.runtime.machine import machine

    about = machine()
    instructions = list(about.instructions)
    rows = [
        (
            "python",
            about.versions["python"],
            "" if sys.version_info >= (3, 11) else "3.11 or later is needed",
        ),
        ("torch", torch.__version__, ""),
        (
            "processor",
            f"{about.cores} cores, {torch.get_num_threads()} threads; "
            f"{', '.join(instructions) or 'no wide vectors known'}",
            _bf16(instructions),
        ),
        (
            "GPU",
            torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
            "" if torch.cuda.is_available() else "large networks train slowly",
        ),
        ("compiler", shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++") or "none", ""),
        _neurons(),
    ]
    for name in ("embedded", *SOURCES):
        try:
            data = load_data(name)
            rows.append((f"data {name}", f"{len(data.train)} + {len(data.test)} images", ""))
        except UserError as error:
            rows.append((f"data {name}", "not found", str(error).partition("; ")[2]))
    for name in FRAMEWORKS:
        try:
            rows.append((name, version(name), ""))
        except PackageNotFoundError:
            rows.append((name, "not installed", "only needed to compare with it"))
    if given.json:
        common.print_json({name: {"found": found, "note": note} for name, found, note in rows})
    else:
        common.table("spikeguard doctor", ["part", "found", "note"], rows)
        common.say("next: spikeguard demo")
    return 0


def _neurons() -> tuple[str, str, str]:
    """The path that layers of neurons take on the CPU, and what is missing for a faster one."""
    from spikeguard.kernels import compiler, cpp_build

    native, reason = cpp_build.verdict()
    if native:
        return "neurons", "native: batch norm, time loop, noise and pooling in one C++ pass", ""
    compiled, why = compiler.verdict()
    if compiled:
        return (
            "neurons",
            "compiled by torch, one pass over time",
            f"up to twice as slow as the C++ pass: {reason}",
        )
    return "neurons", "eager", f"several times slower: {reason}" + (f"; {why}" if why != reason else "")


def _bf16(instructions: list[str]) -> str:
    if "amx_bf16" in instructions:
        return "precision bfloat16 is the fast one here"
    return (
        "bfloat16 may or may not be faster than float32 here: try both"
        if "avx512_bf16" in instructions
        else ""
    )
