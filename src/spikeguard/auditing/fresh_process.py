"""A record checked by another process, which loads the model and the images again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import spikeguard
from spikeguard.errors import UserError
from spikeguard.records.files import read_json
from spikeguard.records.schema import FreshCheck, Origin
from spikeguard.runtime.stop import Stop

LONGEST = 3600  # seconds
PROGRAM = (
    "import sys; sys.path.append(sys.argv.pop(1)); from spikeguard.cli.main import main; sys.exit(main())"
)
"""The command line. The folder that holds the package comes last: of a package that lies in the current
folder, nothing else there is imported instead of an installed module."""


@dataclass(frozen=True)
class Place:
    """The device and the number of threads that the other process uses, too."""

    device: str
    threads: int


def check_in_fresh_process(path: Path, origin: Origin, place: Place, stop: Stop | None = None) -> FreshCheck:
    """What another process finds in a record.

    A process that fails or takes more than an hour is a record that does not hold. Once ``stop`` is set, it
    is ended.
    """
    with TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-P", "-c", PROGRAM, str(Path(spikeguard.__file__).resolve().parents[1])]
        command += ["verify", f"--out={answer}", str(path)]
        command += [f"--device={place.device}", f"--threads={place.threads}"]
        command += [f"--data-dir={origin.data_dir}"] if origin.data_dir else []
        code, error = _run(command, stop)
        if code is None:
            return FreshCheck(False, 0, (f"no answer within {LONGEST} s: run spikeguard verify {path}",))
        try:
            (row,) = read_json(answer)["verified"]
        except UserError:  # it ended before it had an answer
            last = (error.strip() or "no message").splitlines()[-1]
            return FreshCheck(False, 0, (f"it ended with exit code {code}: {last}",))
    return FreshCheck(row["ok"], row["held"], tuple(row["wrong"]))


def _run(command: list[str], stop: Stop | None) -> tuple[int | None, str]:
    """Exit code, None if it was ended because it took too long, and what it said on stderr.

    It has a session of its own: Ctrl-C reaches this process, which then ends it.
    """
    began = time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=_isolated(),
        start_new_session=True,
    ) as process:
        try:
            while True:
                try:
                    _, error = process.communicate(timeout=0.2)
                    return process.returncode, error
                except subprocess.TimeoutExpired:
                    if stop is not None and stop.is_set():
                        return process.poll(), "stopped"
                    if time.monotonic() - began > LONGEST:
                        return None, ""
        finally:
            process.kill()


def _isolated() -> dict[str, str]:
    """The environment without the current folder among the places of modules.

    ``-P`` leaves it out of what Python adds itself. An empty entry of PYTHONPATH means it, too; other
    relative entries stay, as absolute ones.
    """
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    here = Path.cwd().resolve()
    places = [Path(entry).resolve() for entry in entries if entry]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(place) for place in places if place != here)}
