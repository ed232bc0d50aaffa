"""Stopping between two steps instead of inside one: by Ctrl-C (SIGINT), or SIGTERM, by which systems end
work."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_last = signal.SIGINT
Handler = Callable[[int, FrameType | None], None] | signal.Handlers


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

    heeded = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
    for number in heeded:
        signal.signal(number, on_signal)
    try:
        yield stopped
    finally:
        for number, handler in heeded.items():
            signal.signal(number, handler)


def end_at_once() -> None:
    """For a program that starts: until ``interrupt_instead``, a signal ends it with one line.

    Inside an import an exception may become anything.
    """
    _replace((signal.default_int_handler, signal.SIG_DFL), _end)  # others stay: a job may ignore Ctrl-C


def interrupt_instead() -> None:
    """From now on a signal raises KeyboardInterrupt, so that what is open is closed."""
    _replace((_end,), _interrupt)


def ignore_signals() -> None:
    """For a program whose exit code is settled: no signal changes it, be it late or long handled.

    An interrupt that has left a text run by ``exec``, as imports do, would have ``python -m`` end by SIGINT.
    """
    eval("0")  # the next such text takes that back
    _replace((_end, _interrupt), signal.SIG_IGN)


def _replace(known: tuple[object, ...], handler: Handler) -> None:
    """Handle by ``handler`` the signals that one of the known handlers has handled so far."""
    for number in SIGNALS:
        if signal.getsignal(number) in known:
            signal.signal(number, handler)


def _end(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"spikeguard: interrupted\n")
    os._exit(128 + signum)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    _remember(signum)
    raise KeyboardInterrupt


def _remember(signum: int) -> None:
    global _last
    _last = signal.Signals(signum)
