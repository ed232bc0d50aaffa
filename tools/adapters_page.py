"""The page on adapters: its table is written by running every neuron class of every framework under a tap.

python tools/adapters_page.py
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "adapters.md"
CASES = ROOT / "tests" / "conformance" / "neuron_classes.py"
OLD = Path(sys.prefix) / "spikingjelly-0.0.0.0.14"
LABEL = "SpikingJelly 0.0.0.0.14"
HEAD = """# Adapters

A tap reads, disturbs and changes neurons of SpikingJelly 2.0.0 and 0.0.0.0.14, snnTorch 1.0.0,
norse 1.1.0 and sinabs 3.1.3, of models that mix them, and of classes of your own. No framework is
imported: modules are recognized by the path of their class. When the tap closes, every attribute
of the model is the object that it was.

```python
with sg.tap(model) as t:                                # potentials u = H - threshold, before the reset
    model(images)
t.potentials["layer"].shape                             # [T, N, ...]
with sg.tap(model, noise=0.1): ...                      # one draw a step, for spike and reset
with sg.tap(model, surrogate=sg.surrogates.Atan(4.0)): ...   # another derivative
with sg.tap(model, band=sg.neurons.Band(0.5)) as t: ...      # TGO's constraint, in t.penalties
sg.adapters.reset(model)                                # the state of this model, and of no other
```

A layer that is stepped from outside is recorded step by step. A new recording, `layer#1`, begins
when its state was reset, or when the model is called again after a call of several steps. Layers
that compute whole sequences make one recording a call; in them `backward`, `relu` and `currents`
work, too, if the neurons sum their input with one decay.

Noise depends on seed, layer, recording, step and sample, not on the batch. With `seed=` every tap
draws the same. Without it a model's taps go on where the last one stopped.

A tap sees the calls of the thread that opened it, and what backward passes compute again.

## Every neuron class

Each line is a run: reading changes no bit, u has the sign of every spike, noise moves spikes, a
surrogate changes gradients only, nothing is left behind. The last columns say whether
`detach_reset`, and `backward`, `relu` and `currents`, work.

| framework | neurons | reset | computes | tap | detach | sequence |
|---|---|---|---|---|---|---|
"""
TAIL = """
Noise of site `membrane` is refused for neurons of other frameworks: it would have to enter a
potential that their code keeps. Layers of norse with `method="adjoint"` and of snnTorch with
`inhibition=True` are refused by name.

## Your own neurons

[Extend](../guides/extend.md#neurons-of-your-own) teaches taps another class in one call.

Without any adapter, attacks with other surrogates [read spike functions](spikes.md) while a
gradient is taken, and `sg.gradients.read_potentials(model, x)` returns what they read.

::: spikeguard.adapters
    options: {show_root_heading: false, show_root_toc_entry: false, heading_level: 3}
"""


def old_lines() -> list[str]:
    """The lines of SpikingJelly 0.0.0.0.14, run in a process of its own."""
    path = os.pathsep.join([str(OLD), str(CASES.parent)])
    done = subprocess.run(
        [sys.executable, str(CASES), "SpikingJelly", LABEL],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[str] = json.loads(done.stdout)
    return found


def page() -> str:
    """The text of the page."""
    sys.path.insert(0, str(CASES.parent))
    classes = importlib.import_module("neuron_classes")
    lines = [line for framework in classes.FRAMEWORKS for line in classes.lines(framework)]
    return HEAD + "\n".join([*lines, *old_lines()]) + "\n" + TAIL


if __name__ == "__main__":
    PAGE.write_text(page())
