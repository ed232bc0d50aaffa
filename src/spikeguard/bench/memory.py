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
from pathlib import Path
from typing import Any

TIMEOUT = 600  # seconds


def peak(
    contender: str,
    precision: str,
    subject: dict[str, Any],
    device: str,
    threads: int,
    checkpoint: bool = False,
) -> int | None:
    """Bytes of a step of 'TGO', 'vanilla' or a framework.

    None where it cannot be measured (not Linux, out of memory, too slow).
    """
    if not sys.platform.startswith("linux"):
        return None
    settings = {
        "contender": contender,
        "precision": precision,
        "subject": subject,
        "device": device,
        "threads": threads,
        "checkpoint": checkpoint,
    }
    command = [sys.executable, "-W", "ignore", "-m", "spikeguard.bench.memory", json.dumps(settings)]
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


def _measure(
    contender: str, precision: str, subject: dict[str, Any], device: str, threads: int, checkpoint: bool
) -> int:
    import torch

    from spikeguard.bench import peers, tasks
    from spikeguard.runtime.memory import keep_freed_pages

    torch.set_num_threads(threads)
    keep_freed_pages()
    known = {name.split()[0]: make for name, make in peers.installed().items()}
    framework = known[contender]() if contender in known else None
    where, it = torch.device(device), tasks.Subject(**subject)
    torch.ones(1, device=where)
    before = _resident("VmRSS")
    x, y = it.images(where)
    net = it.network_on(where, settle=False)
    if framework is None:
        step = tasks.Step(net, x, y, precision, contender == "TGO", checkpoint=checkpoint)
    else:
        theirs = tasks.theirs(net, framework, tasks.PRECISIONS[precision])
        del net
        step = tasks.their_step(theirs, x, y)  # type: ignore[assignment]
    step()
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
        step()
        return torch.cuda.max_memory_allocated(where)
    Path("/proc/self/clear_refs").write_text("5")
    step()
    return _resident("VmHWM") - before


if __name__ == "__main__":
    print(_measure(**json.loads(sys.argv[1])))
