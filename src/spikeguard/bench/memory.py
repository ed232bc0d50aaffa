"""Peak memory of one training step, in a process of its own: ``python -m spikeguard.bench.memory '{...}'``
prints the bytes.

On a CPU the highest resident size during the second step, less what the process held before the network was
built (Linux only: it resets the kernel's record of the peak). What torch loads lazily for a step counts
too, up to 0.2 GiB on either side. On a GPU what torch allocated at most.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from spikeguard.records.bench import Subject
from spikeguard.records.build import build
from spikeguard.records.files import plain

TIMEOUT = 600  # seconds


@dataclass(frozen=True)
class Case:
    """A step to measure: of 'TGO', 'vanilla' or a framework, on a subject."""

    contender: str
    precision: str
    subject: Subject
    device: str
    threads: int
    checkpoint: bool = False


def peak(case: Case) -> int | None:
    """Bytes of the step; None where it cannot be measured (not Linux, out of memory, too slow)."""
    if not sys.platform.startswith("linux"):
        return None
    command = [sys.executable, "-W", "ignore", "-m", "spikeguard.bench.memory", json.dumps(plain(case))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return int(done.stdout.strip().splitlines()[-1])


def _resident(name: str) -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":")
    )
    return 1024 * int(line.split()[1])


def _measure(case: Case) -> int:
    import torch

    from spikeguard.bench import peers, tasks
    from spikeguard.bench.timing import Work
    from spikeguard.runtime.memory import keep_freed_pages

    torch.set_num_threads(case.threads)
    keep_freed_pages()
    known = {name.split()[0]: make for name, make in peers.installed().items()}
    framework = known[case.contender]() if case.contender in known else None
    where, subject = torch.device(case.device), case.subject
    torch.ones(1, dtype=torch.float32, device=where)
    before = _resident("VmRSS")
    x, y = tasks.batch_of(subject, where)
    net = tasks.network_of(subject, where, settle=False)
    if framework is None:
        guarded = case.contender == "TGO"
        step: Work = tasks.Step(net, x, y, case.precision, guarded, checkpoint=case.checkpoint)
    else:
        theirs = tasks.theirs(net, framework, tasks.PRECISIONS[case.precision])
        del net
        step = tasks.their_step(theirs, x, y)
    step()
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
        step()
        return torch.cuda.max_memory_allocated(where)
    Path("/proc/self/clear_refs").write_text("5")
    step()
    return _resident("VmHWM") - before


if __name__ == "__main__":
    print(_measure(build(Case, json.loads(sys.argv[1]), "bench")))
