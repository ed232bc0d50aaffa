"""The queue: the next unfinished cell, until all are done. One process at a time works on a state folder."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from spikeguard.data.sources import load_data
from spikeguard.records.cells import CellRecord
from spikeguard.records.files import write_bytes
from spikeguard.training.checkpoint import STATE
from studies.cifar.cells import Planned
from studies.cifar.pace import PAUSE, say, span
from studies.cifar.work import Place, pieces_in, work

LARGEST_STATE = 15 * 10**6  # bytes of an unfinished training that may be committed


@contextmanager
def on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stopped = threading.Event()

    def on_signal(signum: int, frame: FrameType | None) -> None:
        stopped.set()

    before = {s: signal.signal(s, on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(cells: Sequence[Planned], place: Place, data_folder: Path | None, limit: int | None = None) -> int:
    """Work on the cells without a record, in their order, at most ``limit`` of them; how many were finished.

    Interrupted once ``place.stop`` is set, with everything kept.
    """
    waiting = [planned for planned in cells if not place.is_done(planned)]
    minutes = sum(planned.plan.minutes for planned in waiting)
    say(f"{len(waiting)} of {len(cells)} cells to do, {span(60 * minutes)} planned")
    for planned in waiting[:limit]:
        data = load_data(planned.cell.recipe.data, data_folder)
        say(f"{planned.cell.name}: {planned.plan.question}")
        say(result(work(planned, data, place)))
    return len(waiting[:limit])


def result(record: CellRecord) -> str:
    """A finished cell in a line."""
    if record.audit is None:
        return f"{record.name}: {record.failed or 'no audit'}"
    audit = record.audit
    worst = audit.worst_case
    return (
        f"{record.name}: clean {100 * audit.clean.value:.1f}, own PGD-20 {100 * audit.masking.pgd20:.1f}, "
        f"worst case {100 * worst.value:.1f} % ({100 * worst.low:.1f} to {100 * worst.high:.1f}) of "
        f"{worst.n} validation images"
    )


def status(cells: Sequence[Planned], place: Place) -> Iterator[str]:
    """A line for each cell, and what of the state may be committed."""
    for planned in cells:
        folder = place.run_folder(planned)
        if place.is_done(planned):
            yield f"done     {result(CellRecord.read(place.record(planned)))}"
        elif not folder.exists():
            yield f"waiting  {planned.cell.name}, {span(60 * planned.plan.minutes)} planned"
        else:
            size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            fits = "commit" if size <= LARGEST_STATE else "too large to commit"
            pieces, what = pieces_in(folder).pieces, "training" if (folder / STATE).exists() else "audit"
            step = f"step {pieces[-1].last}, " if pieces else ""
            yield f"{what} {planned.cell.name}: {step}{folder} has {size / 1e6:.1f} MB ({fits})"


def pause(state: Path, on: bool) -> None:
    """Make the file that pauses the work, or remove it."""
    if on:
        write_bytes(state / PAUSE, b"")
    else:
        (state / PAUSE).unlink(missing_ok=True)
