"""What verbs share: parsers with one-line errors, progress with an ETA, tables, threads."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from fractions import Fraction
from typing import Any, NoReturn

from spikeguard.errors import UserError
from spikeguard.records.files import plain

LINE_EVERY = 30.0  # seconds between lines about the same stage in a log
SPEED_OVER = 1800.0  # seconds that an ETA looks back: steps may take minutes


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit code 2."""

    def __init__(self, verb: str, description: str, **rest: Any) -> None:
        rest.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(prog=f"spikeguard {verb}", description=description, allow_abbrev=False, **rest)
        self.add_argument("--threads", type=positive, help="CPU threads (default: all cores)")
        self.add_argument(
            "--json", action="store_true", help="print the record as JSON on stdout instead of a table"
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('spikeguard ')}: {message} (see {self.prog} --help)")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return value


def _fraction(text: str) -> float:
    """The number that a text such as 0.03 or 8/255 stands for, -1 where it is none."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        return -1.0


def share(text: str) -> float:
    """A number in [0, 1], also written as a fraction: 8/255."""
    value = _fraction(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must lie in [0, 1], such as 8/255 or 0.03")
    return value


def share_or_more(text: str) -> float:
    """A number of at least 0, also written as a fraction (L2 and L1 budgets may exceed 1)."""
    value = _fraction(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of at least 0, such as 8/255 or 0.5")
    return value


def start(threads: int | None) -> None:
    """Set up the process: log to stderr, keep memory, use the asked number of threads."""
    import torch

    from spikeguard.runtime.memory import keep_freed_pages

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("spikeguard: %(message)s"))
    log = logging.getLogger("spikeguard")
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    keep_freed_pages()
    if threads:
        torch.set_num_threads(threads)


class Progress:
    """A progress bar on stderr, with an ETA; lines where there is no terminal: each stage, and how far it is
    now and then. Stages that count on share a bar.
    """

    def __init__(self, bar: Any) -> None:
        self.bar, self.stage, self.at, self.told = bar, "", (-1, 0), 0.0
        self.task: int | None = None

    def tell(self, stage: str, done: int, total: int, detail: str = "") -> None:
        before = self.stage, self.at
        if self.task is None or (stage != self.stage and (total != self.at[1] or done <= self.at[0])):
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task(stage, total=total)
        self.stage, self.at = stage, (done, total)
        self.bar.update(self.task, completed=done, total=total, description=stage + detail)
        if not self.bar.console.is_terminal:
            self._line(before)

    def _line(self, before: tuple[str, tuple[int, int]]) -> None:
        """For logs.

        A line a stage, and further ones as long as it counts, at most one in ``LINE_EVERY`` seconds.
        """
        now, text = time.monotonic(), self.stage
        if self.stage == before[0]:
            if self.at == before[1] or now - self.told < LINE_EVERY:
                return
            text += f", {self.at[0]} of {self.at[1]}"
            left = next(t.time_remaining for t in self.bar.tasks if t.id == self.task)
            text += "" if left is None else f", {timedelta(seconds=round(left))} left"
        self.told = now
        print(f"spikeguard: {text}", file=sys.stderr, flush=True)


@contextmanager
def progress() -> Iterator[Progress]:
    """A ``Progress`` that vanishes when it ends."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    console = Console(stderr=True)
    off = not console.is_terminal
    with Bar(*columns, console=console, transient=True, disable=off, speed_estimate_period=SPEED_OVER) as bar:
        yield Progress(bar)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        drawn.add_column(name, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        drawn.add_row(*row)
    console = Console()
    console.width = max(console.width, 100) if not console.is_terminal else console.width
    console.print(drawn)


def print_json(record: Mapping[str, Any]) -> None:
    """Print a record on stdout."""
    print(json.dumps(plain(record), indent=1, allow_nan=False))
