"""The trap that made a network with 7 % look 91 % robust.

Spikingjelly 0.0.0.0.14 gives no input gradient in eval mode.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "spikingjelly-0.0.0.0.14"
SCRIPT = Path(__file__).with_name("old_spikingjelly.py")


@pytest.mark.slow
@pytest.mark.skipif(
    not FOLDER.is_dir(), reason="spikingjelly 0.0.0.0.14 is not installed (dev.py test installs it)"
)
def test_the_audit_does_not_fall_for_the_missing_gradient() -> None:
    path = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["eval"] > told["train"] + 0.3, "the trap is not there"
    assert told["audit"] <= told["train"] + 0.02
    assert told["errors"] == []
    assert "gradient" in told["single"], "a single attack that does nothing says so"
    assert told["same"]
    assert told["wrapped"] == told["train"], "wrap runs the neurons, and nothing else, in training mode"
    assert ["training mode" in note for note in told["notes"]] == [True]
