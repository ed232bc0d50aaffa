"""Does torch.compile work here? Checked once; if not, kernels run uncompiled."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

log = logging.getLogger("spikeguard")
P = ParamSpec("P")
R = TypeVar("R")

WORTHWHILE = 2**18  # elements; below, starting a compiled kernel for one more shape costs more than it saves


@cache
def verdict(device: str = "cpu") -> tuple[bool, str]:
    """Can kernels be compiled for a kind of device? If not, the reason. Checked once.

    ``SPIKEGUARD_COMPILE=0`` turns it off.
    """
    if os.environ.get("SPIKEGUARD_COMPILE", "1") == "0":
        return False, "switched off by SPIKEGUARD_COMPILE=0"
    try:
        probed = compile(_probe)(torch.ones(64, dtype=torch.float32, device=device))
        if not torch.equal(probed.cpu(), torch.full((64,), 3.0, dtype=torch.float32, device="cpu")):
            raise RuntimeError("a compiled kernel gave a wrong result")
    except Exception as error:  # whatever a compiler raises, the answer is the same: run without it
        said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(said[: 2 if said[0].endswith(":") else 1])[
            :160
        ]  # "backend='inductor' raised:" alone says nothing
        log.warning(
            "neurons run uncompiled, several times slower: torch.compile does not work here (%s)", reason
        )
        return False, reason
    return True, ""


def _probe(x: Tensor) -> Tensor:
    return x * 2 + 1


def use(elements: int, device: torch.device) -> bool:
    """Should a kernel over this many elements be compiled? A function of the size alone: runs repeat."""
    return elements >= WORTHWHILE and verdict(device.type)[0]


def path(device: str = "cpu") -> str:
    """The path that large kernels take there: 'compiled' or 'eager'."""
    return "compiled" if verdict(device)[0] else "eager"


def compile(function: Callable[P, R]) -> Callable[P, R]:
    """torch.compile for elementwise kernels: shapes stay symbolic, a graph break is an error."""
    return torch.compile(function, dynamic=True, fullgraph=True)
