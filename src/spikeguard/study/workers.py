"""Networks of a study ranked or scored one after another, or side by side, each in a process of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import parent_process
from typing import Any, Literal

import torch

from spikeguard.errors import Interrupted, UserError
from spikeguard.runtime.memory import keep_freed_pages
from spikeguard.runtime.progress import no_progress
from spikeguard.study.matrix import Cell
from spikeguard.study.ranking import GO_ON, Bench

Work = Literal["ranked", "scored", "looked_at"]
Done = Iterator[tuple[Cell, dict[str, Any]]]
_held: Bench | None = None  # a worker's own


def rows(bench: Bench, work: Work, todo: Sequence[Cell], jobs: int) -> Done:
    """Every network with its row, as they get ready. Interrupted once all that was finished is given out."""
    if jobs > 1 and todo:
        yield from _side_by_side(bench, work, todo, jobs)
        return
    for number, cell in enumerate(todo):
        yield (
            cell,
            getattr(bench, work)(
                cell,
                f"{number + 1} of {len(todo)} to be {work.replace('_', ' ')}: {cell.recipe.name} {cell.seed}",
            ),
        )


def _side_by_side(bench: Bench, work: Work, todo: Sequence[Cell], jobs: int) -> Done:
    context = torch.multiprocessing.get_context("spawn")
    halt = context.Event()
    threads = max(
        1, torch.get_num_threads() // jobs
    )  # the same share where fewer networks are left: it decides about last bits
    shared = (replace(bench, tell=no_progress, stop=None), threads, halt)
    what = "1 network" if len(todo) == 1 else f"{len(todo)} networks"
    stage, stopped = f"{what} to be {work.replace('_', ' ')}, up to {jobs} at a time", False
    with _threads_that_sleep(), ProcessPoolExecutor(min(jobs, len(todo)), context, _begin, shared) as pool:
        waiting = {pool.submit(_one, work, cell): cell for cell in todo}
        try:
            while waiting:
                bench.tell(stage, len(todo) - len(waiting), len(todo))
                for future in wait(waiting, 1.0, FIRST_COMPLETED).done:
                    cell = waiting.pop(future)
                    try:
                        row = future.result()
                    except Interrupted:
                        stopped = True
                    except BrokenProcessPool as error:
                        raise UserError(
                            "a process of the study could not start or was ended (memory?) near "
                            f"{cell.name}; {GO_ON}"
                        ) from error
                    else:
                        yield cell, row
                stopped = stopped or bench.stopped
                if stopped and not halt.is_set():
                    halt.set()
                    waiting = {future: cell for future, cell in waiting.items() if not future.cancel()}
        finally:  # whatever ends it: those that run save and stop, those in the queue stop before they begin
            halt.set()
            pool.shutdown(wait=True, cancel_futures=True)
    if stopped:
        raise Interrupted(f"study stopped; {GO_ON}")


@contextmanager
def _threads_that_sleep() -> Iterator[None]:
    """Processes begun inside do not let waiting threads spin where another process could run."""
    before = os.environ.get("OMP_WAIT_POLICY")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("OMP_WAIT_POLICY", None)


def _begin(bench: Bench, threads: int, halt: Any) -> None:
    global _held
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process of a terminal, but only the first one tells what to do
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_pages()
    torch.set_num_threads(threads)
    _held = replace(bench, stop=halt)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _one(work: Work, cell: Cell) -> dict[str, Any]:
    assert _held is not None
    row: dict[str, Any] = getattr(_held, work)(cell, cell.name)
    return row
