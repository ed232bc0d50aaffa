"""A folder for one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spikeguard.errors import UserError
from spikeguard.records.files import fcntl

LOCK = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder for this process alone; UserError if another one has it. Its pid is in the file ``lock``.

    The system drops the lock of a process that ends, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                held = (folder / LOCK).read_text().strip()
                raise UserError(f"{folder} is in use by process {held}") from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
