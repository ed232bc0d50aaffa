"""Whether the running forward passes measure a model, as in an attack, or train it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_here = threading.local()


@contextmanager
def measuring() -> Iterator[None]:
    """Inside, forward passes of this thread measure: they are part of no training."""
    before = is_measuring()
    _here.on = True
    try:
        yield
    finally:
        _here.on = before


def is_measuring() -> bool:
    """Whether this thread is inside ``measuring``."""
    return getattr(_here, "on", False)
