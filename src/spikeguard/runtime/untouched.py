"""A model is the same after a measurement as before, whatever its code does.

What it holds is put back (``held.py``, ``put_back.py``), and what it set for the process (``process.py``).
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

from spikeguard.runtime.held import Held
from spikeguard.runtime.process import process_kept

P = ParamSpec("P")
R = TypeVar("R")
_guarded = threading.local()


@contextmanager
def untouched(model: object) -> Iterator[None]:
    """What ``model`` holds is the same to the bit afterwards; inside another guard of it nothing is done."""
    active: set[int] = vars(_guarded).setdefault("models", set())
    if id(model) in active:
        yield
        return
    held = Held(model)
    process = None if active else process_kept()
    active.add(id(model))
    try:
        yield
    finally:
        active.discard(id(model))
        with torch.no_grad(), torch.inference_mode(False):
            held.restore()
        if process is not None:
            process()


def leaves_untouched(verb: Callable[P, R]) -> Callable[P, R]:
    """A function whose first argument is a model, which it leaves ``untouched``."""

    first = next(iter(inspect.signature(verb).parameters))

    @functools.wraps(verb)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        with untouched(args[0] if args else kwargs.get(first)):
            return verb(*args, **kwargs)

    return guarded
