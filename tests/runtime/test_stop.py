"""Signals: the first ends the work after its step, the second at once; the exit code says which."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spikeguard.cli import main as program
from spikeguard.errors import Interrupted
from spikeguard.runtime import stop

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_sets_the_event_and_a_second_one_stops_at_once(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with stop.ctrl_c() as stopped:
        os.kill(os.getpid(), number)
        assert stopped.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert stop.exit_code() == code

    def run(arguments: list[str]) -> None:
        with stop.ctrl_c() as stopped:
            os.kill(os.getpid(), number)
            if stopped.is_set():
                raise Interrupted("stopped and kept")

    monkeypatch.setattr(program, "import_module", lambda name: type("verb", (), {"run": staticmethod(run)}))
    assert program.main(["train"]) == code
    assert capsys.readouterr().err == "spikeguard: stopped and kept\n"


START = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
from spikeguard.runtime import stop
stop.end_at_once()
if sys.argv[1] == "later":
    stop.interrupt_instead()
try:
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
except KeyboardInterrupt:
    print("closed", stop.exit_code())
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_before_the_work_begins_a_signal_ends_the_program_with_one_line(name: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", START, "now", name], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "spikeguard: interrupted\n")
    done = subprocess.run([sys.executable, "-c", START, "later", name], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"closed {code}\n")


def test_a_signal_that_somebody_ignores_stays_ignored() -> None:
    before = {n: signal.getsignal(n) for n in stop.SIGNALS}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop.end_at_once()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        stop.interrupt_instead()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        with stop.ctrl_c() as stopped:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stopped.is_set()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopped.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


IGNORED = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a job that a script has put into the background
from spikeguard.runtime import stop
stop.end_at_once()
os.kill(os.getpid(), signal.SIGINT)
print("goes on", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_job_that_ignores_ctrl_c_ends_by_sigterm_with_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", IGNORED], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "goes on\n", "spikeguard: interrupted\n")


LEFT = """
import sys
from spikeguard.runtime import stop
try:
    exec("raise KeyboardInterrupt")
except KeyboardInterrupt:
    stop.ignore_signals()
sys.exit(143)
"""


def test_an_interrupt_in_the_middle_of_an_import_does_not_change_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "left.py").write_text(LEFT)
    assert subprocess.run([sys.executable, "-m", "left"], cwd=tmp_path).returncode == 143
