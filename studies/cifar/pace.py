"""How a long training runs beside other work: its speed, its time left, pauses."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from spikeguard.runtime.stop import Stop

PAUSE = "PAUSE"
SHOWN_EVERY = 60.0  # seconds between two lines about the same stage


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def say(line: str) -> None:
    """A line of the log."""
    print(f"{now()} {line}", flush=True)


@dataclass
class Pace:
    """Seconds and processor seconds of the work so far, without pauses.

    Work pauses while ``state`` has a file PAUSE, unless ``stop`` is set.
    """

    state: Path
    stop: Stop
    began: float = field(default_factory=time.monotonic)
    began_cpu: float = field(default_factory=time.process_time)
    paused: float = 0.0
    shown: float = -SHOWN_EVERY

    def seconds(self) -> float:
        """Time since the beginning, without pauses."""
        return time.monotonic() - self.began - self.paused

    def cpu_seconds(self) -> float:
        """Processor time of all threads since the beginning."""
        return time.process_time() - self.began_cpu

    def wait(self, every: float = 2.0) -> None:
        """Return at once, or when the file PAUSE is gone or ``stop`` is set."""
        pause = self.state / PAUSE
        if not pause.exists() or self.stop.is_set():
            return
        begun = time.monotonic()
        say(f"paused until {pause} is removed")
        while pause.exists() and not self.stop.is_set():
            time.sleep(every)
        self.paused += time.monotonic() - begun
        if not self.stop.is_set():
            say("going on")

    def show(self, line: Callable[[], str]) -> None:
        """Print a line, at most one a minute."""
        if time.monotonic() - self.shown >= SHOWN_EVERY:
            self.shown = time.monotonic()
            say(line())


def span(seconds: float) -> str:
    """A duration as people say it: '2 h 05 min', '3 min'."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
