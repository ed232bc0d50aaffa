"""The program in a shell as it may be: streams closed, full or not read, no folder, little memory."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")
PROGRAM = f"{shlex.quote(sys.executable)} -m spikeguard"
FULL = "spikeguard: cannot write to stdout: No space left on device\n"


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell in which ``sg`` is the program."""
    text = script.replace("sg ", f"{PROGRAM} ")
    return subprocess.run(["sh", "-c", text], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("script", "code", "out", "err"),
    [
        ("sg --help > /dev/full", 2, "", FULL),
        ("sg explain > /dev/full", 2, "", FULL),
        ("sg merge --help > /dev/full", 2, "", FULL),
        ("sg explain >&-", 0, "", ""),
        ("sg fly 2>&-", 2, "", ""),
        ("sg fly 2> /dev/full", 2, "", ""),
        ("sg explain <&- >&- 2>&-", 0, "", ""),
        ("(sg explain; echo $? >&2) | true", 0, "", "0\n"),
        ("(sg fly 2>&1; echo $? >&2) | true", 0, "", "2\n"),
    ],
)
def test_the_exit_code_does_not_depend_on_who_reads(
    script: str, code: int, out: str, err: str, tmp_path: Path
) -> None:
    done = shell(script, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_a_file_that_is_opened_never_becomes_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "from spikeguard.cli.streams import own_streams; own_streams(); "
        "file = open('kept', 'w'); print('lost'); import os; os.write(2, b'lost'); file.close()"
    )
    done = subprocess.run(["sh", "-c", f'{sys.executable} -c "{code}" <&- >&- 2>&-'], cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "kept").read_text() == ""


def test_a_folder_that_is_gone_and_too_little_memory_are_one_line(tmp_path: Path) -> None:
    done = shell("mkdir gone; cd gone; rmdir ../gone; sg audit run", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("spikeguard: the current folder does not exist any more")
    done = shell("ulimit -v 500000; sg audit run", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "spikeguard: not enough memory: a limit (ulimit -v) leaves 488 MiB of addresses, at least 700 are "
        "needed\n"
    )


def test_a_signal_after_the_last_line_does_not_change_the_exit_code() -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from spikeguard.cli import main as program\n"
        "sys.argv = ['spikeguard', '--version']\n"
        "code = program.main()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "raise SystemExit(code + 7)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")


def test_the_program_is_ready_for_signals_before_it_imports_its_verbs() -> None:
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import spikeguard.__main__\n"
        "print(signal.getsignal(signal.SIGINT).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "_end\n"
