"""Stopping between two steps instead of inside one: by Ctrl-C (SIGINT), or SIGTERM, by which systems end
work."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_last = signal.SIGINT


class Stop(Protocol):
    """An event, of threads or of processes: once it is set, the work ends after the running step."""

    def is_set(self) -> bool: ...


def exit_code() -> int:
    """The exit code of a program that a signal has stopped: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + _last


@contextmanager
def ctrl_c() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a loop can end after its step; a second one stops at
    once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            _interrupt(signum, frame)
        _remember(signum)
        stopped.set()

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_at_once() -> None:
    """For a program that starts: until ``interrupt_instead``, a signal ends it with one line.

    Inside an import an exception may become anything.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody wants it otherwise
        signal.signal(signal.SIGINT, _end)
        signal.signal(signal.SIGTERM, _end)


def interrupt_instead() -> None:
    """From now on a signal raises KeyboardInterrupt, so that what is open is closed."""
    if signal.getsignal(signal.SIGINT) is _end:
        for number in SIGNALS:
            signal.signal(number, _interrupt)


def ignore_signals() -> None:
    """For a program whose exit code is settled: a late signal does not change it."""
    if signal.getsignal(signal.SIGINT) in (_end, _interrupt):
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _end(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"spikeguard: interrupted\n")
    os._exit(128 + signum)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    _remember(signum)
    raise KeyboardInterrupt


def _remember(signum: int) -> None:
    global _last
    _last = signal.Signals(signum)
