"""Where a program runs: what it needs before torch loads, because torch's libraries end the process."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec

from spikeguard.errors import UserError

LEAST = 700 * 2**20
"""Bytes of address space that torch and numpy need to load; with less, OpenBLAS and MKL end the process."""


def check_place() -> None:
    """UserError if the current folder is gone or a limit leaves too little memory to begin."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("the current folder does not exist any more: change to another one") from error
    if find_spec("resource") is None:  # Windows
        return
    resource = import_module("resource")
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY and most < LEAST:
        raise UserError(
            f"not enough memory: a limit (ulimit -v) leaves {most // 2**20} MiB of addresses, at least "
            f"{LEAST // 2**20} are needed"
        )
