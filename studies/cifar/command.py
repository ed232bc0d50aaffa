"""The commands of the study: run, status, pause, go."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from spikeguard.errors import Interrupted, UserError
from spikeguard.records.lock import locked
from spikeguard.runtime.memory import keep_freed_pages
from studies.cifar.cells import CELLS, read_cells
from studies.cifar.queue import on_signals, pause, run, status
from studies.cifar.work import Place

STATE, RESULTS = Path("studies/state"), Path("results/cifar")
NICEST = 19


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m studies.cifar", description=__doc__)
    made.add_argument(
        "verb",
        choices=("run", "status", "pause", "go"),
        help="work on the queue; say how far it is; let it wait; let it go on",
    )
    made.add_argument("--data", type=Path, help="folder of CIFAR (default: $SPIKEGUARD_DATA)")
    made.add_argument("--state", type=Path, default=STATE, help="unfinished trainings (default: %(default)s)")
    made.add_argument("--results", type=Path, default=RESULTS, help="records (default: %(default)s)")
    made.add_argument("--cells", type=Path, default=CELLS, help="the queue (default: %(default)s)")
    made.add_argument("--threads", type=int, default=2, help="threads of a training (default: %(default)s)")
    made.add_argument("--limit", type=int, help="end after so many cells")
    return made


def main(arguments: list[str]) -> int:
    """Run a command; returns the exit code: 0, 2 after a line about wrong input, 130 if it was stopped."""
    given = parser().parse_args(arguments)
    try:
        return _run(given)
    except Interrupted as stopped:
        print(stopped, flush=True)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(given: argparse.Namespace) -> int:
    if given.verb in ("pause", "go"):
        pause(given.state, given.verb == "pause")
        return 0
    cells = read_cells(given.cells)
    with on_signals() as stop:
        place = Place(given.state, given.results, stop)
        if given.verb == "status":
            print("\n".join(status(cells, place)))
            return 0
        os.nice(NICEST)  # the system stops at 19
        keep_freed_pages()
        torch.set_num_threads(given.threads)
        with locked(given.state):
            run(cells, place, given.data, given.limit)
    return 0
