"""The page of ways to write a spike, from the tests' own list.

python tools/reading_spikes.py
"""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "spikes.md"
HEAD = """# Reading spikes

Attacks with another surrogate (`SwapSurrogate`, `ASSG`, `PDSG`, `RandomSurrogate`, `BPDA` with a surrogate)
need the distance to the threshold of every neuron. In networks of other code it is read while the
gradient is taken:

- Custom autograd functions are met where they are called. The comparison inside gives the potential; if
  none is seen, the function is computed once more as part of the graph, or its jumps are searched for.
- Comparisons of plain torch are followed until they become spikes, straight-through expressions included.
- Scripted code runs operation by operation, compiled code as it was written.

The same network gives the same gradients in each of these ways; a test holds every row to that. Each row
is a re-creation in our own words of how the named code writes its spikes.

"""
TAIL = """
What cannot be read raises the flag [spikes-unread](../flags/spikes-unread.md), or
[spikes-unreached](../flags/spikes-unreached.md) if the model's own gradient does not pass it either:
functions of several inputs that other libraries compute, spikes drawn at random inside of a function, and
scripted code with operations that have no counterpart in Python.
"""


def page() -> str:
    """The text of the page."""
    sys.path.insert(0, str(ROOT / "tests" / "gradients"))
    ways = importlib.import_module("ways").WAYS
    rows = "\n".join(f"| {way.name} | {way.seen_in} |" for way in ways)
    return f"{HEAD}| way of writing | seen in |\n|---|---|\n{rows}\n{TAIL}"


if __name__ == "__main__":
    PAGE.write_text(page())
