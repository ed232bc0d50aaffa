"""Progress of a verb on stderr: a bar with an ETA, or lines for a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from spikeguard.runtime.shown import one_line

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

LINE_EVERY = 30.0  # seconds between lines about the same stage in a log
SPEED_OVER = 1800.0  # seconds over which an ETA averages the speed: steps may take minutes


class Progress:
    """A progress bar on stderr, with an ETA.

    Without a terminal it prints lines: each stage, and every ``LINE_EVERY`` seconds how far it is. Stages
    that count on share a bar.
    """

    def __init__(self, bar: Bar) -> None:
        self.bar, self.stage, self.at, self.printed = bar, "", (-1, 0), 0.0
        self.task: TaskID | None = None

    def show(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Show that ``done`` of ``total`` parts of the stage are done."""
        before = self.stage, self.at
        if self.task is None or (stage != self.stage and (total != self.at[1] or done <= self.at[0])):
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task(stage, total=total)
        self.stage, self.at = stage, (done, total)
        self.bar.update(self.task, completed=done, total=total, description=one_line(stage + detail))
        if not self.bar.console.is_terminal:
            self._line(before)

    def _line(self, before: tuple[str, tuple[int, int]]) -> None:
        """A line for logs when a stage begins, then at most one in ``LINE_EVERY`` seconds as it counts."""
        now, text = time.monotonic(), self.stage
        if self.stage == before[0]:
            if self.at == before[1] or now - self.printed < LINE_EVERY:
                return
            text += f", {self.at[0]} of {self.at[1]}"
            left = next(t.time_remaining for t in self.bar.tasks if t.id == self.task)
            text += "" if left is None else f", {timedelta(seconds=round(left))} left"
        self.printed = now
        print(f"spikeguard: {one_line(text)}", file=sys.stderr, flush=True)


@contextmanager
def progress() -> Iterator[Progress]:
    """A ``Progress`` that vanishes when it ends."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    console = Console(stderr=True)
    off = not console.is_terminal
    with Bar(*columns, console=console, transient=True, disable=off, speed_estimate_period=SPEED_OVER) as bar:
        yield Progress(bar)
