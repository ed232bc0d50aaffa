"""Work on the cells of a sweep one after another, or side by side, each in a process of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import parent_process
from typing import Protocol

import torch

from spikeguard.errors import Interrupted, UserError
from spikeguard.records.studies import StudyRow
from spikeguard.runtime.memory import keep_freed_pages
from spikeguard.runtime.progress import no_progress
from spikeguard.runtime.stop import Stop
from spikeguard.sweep.cells import CONTINUE, Cell, Context

_context: Context | None = None  # a worker process's own


class Work(Protocol):
    """What is done with one network. Worker processes receive it pickled: a function or a dataclass."""

    @property
    def verb(self) -> str:
        """What progress shows, such as 'rank'."""

    def __call__(self, context: Context, cell: Cell, title: str) -> StudyRow:
        """The network's row of the record."""


class _Event(Stop, Protocol):
    """An event that processes share."""

    def set(self) -> None: ...


def rows_of(
    context: Context, work: Work, cells: Sequence[Cell], jobs: int
) -> Iterator[tuple[Cell, StudyRow]]:
    """Every network with its row, as soon as it is ready; ``jobs`` of them at a time.

    Interrupted after every finished row was yielded; UserError if a worker process ends.
    """
    if jobs > 1 and cells:
        yield from _side_by_side(context, work, cells, jobs)
        return
    for number, cell in enumerate(cells):
        title = f"{number + 1} of {len(cells)} to {work.verb}: {cell.recipe.name} {cell.seed}"
        yield cell, work(context, cell, title)


def put_in_order(
    rows: Mapping[str, StudyRow], cell: Cell, row: StudyRow, cells: Sequence[Cell]
) -> dict[str, StudyRow]:
    """Rows with one more, in the order of the matrix: ties and bounds must not depend on who is first."""
    order = {c.name: number for number, c in enumerate(cells)}
    both = {**rows, cell.name: row}
    return dict(sorted(both.items(), key=lambda item: order.get(item[0], len(order))))


def _side_by_side(
    context: Context, work: Work, cells: Sequence[Cell], jobs: int
) -> Iterator[tuple[Cell, StudyRow]]:
    spawn = torch.multiprocessing.get_context("spawn")
    halt = spawn.Event()
    # the same share where fewer networks are left: the number of threads decides the last bits
    threads = max(1, torch.get_num_threads() // jobs)
    shared = (replace(context, progress=no_progress, stop=None), threads, halt)
    with _waiting_threads_sleep(), ProcessPoolExecutor(min(jobs, len(cells)), spawn, _start, shared) as pool:
        waiting = {pool.submit(_one, work, cell): cell for cell in cells}
        try:
            stopped = yield from _collect(waiting, halt, context, work, jobs)
        finally:  # whatever ends it: running work saves and stops, waiting work stops before it begins
            halt.set()
            pool.shutdown(wait=True, cancel_futures=True)
    if stopped:
        raise Interrupted(f"stopped; {CONTINUE}")


def _collect(
    waiting: dict[Future[StudyRow], Cell], halt: _Event, context: Context, work: Work, jobs: int
) -> Generator[tuple[Cell, StudyRow], None, bool]:
    """Rows as they are ready; returns whether the work was stopped."""
    total, stopped = len(waiting), False
    networks = "1 network" if total == 1 else f"{total} networks"
    while waiting:
        context.progress(f"{networks} to {work.verb}, up to {jobs} at a time", total - len(waiting), total)
        for future in wait(waiting, 1.0, FIRST_COMPLETED).done:
            cell = waiting.pop(future)
            try:
                row = future.result()
            except Interrupted:
                stopped = True
            except BrokenProcessPool as error:
                raise UserError(
                    f"a worker process of the sweep could not start or was ended (memory?) near {cell.name}; "
                    f"{CONTINUE}"
                ) from error
            else:
                yield cell, row
        stopped = stopped or context.stopped
        if stopped and not halt.is_set():
            halt.set()
            for future in [future for future in waiting if future.cancel()]:
                del waiting[future]
    return stopped


@contextmanager
def _waiting_threads_sleep() -> Iterator[None]:
    """Threads of processes that start inside sleep while they wait, so that other processes can run."""
    before = os.environ.get("OMP_WAIT_POLICY")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("OMP_WAIT_POLICY", None)


def _start(context: Context, threads: int, halt: Stop) -> None:
    global _context
    # Ctrl-C reaches every process of a terminal; only the first one decides what ends
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_pages()
    torch.set_num_threads(threads)
    _context = replace(context, stop=halt)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _one(work: Work, cell: Cell) -> StudyRow:
    assert _context is not None
    return work(_context, cell, cell.name)
