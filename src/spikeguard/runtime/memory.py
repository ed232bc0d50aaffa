"""Keeping freed memory instead of giving it back to the system after every operation."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_pages() -> bool:
    """On glibc, serve large tensors from memory that the process already holds: zeroing fresh pages costs up
    to a third of a step.

    For programs (the command line calls it), not for libraries: it changes the whole process. Returns whether
    it worked.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    no_mmap, trim_threshold = -4, -1
    return bool(mallopt(no_mmap, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))
