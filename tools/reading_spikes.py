"""The page of ways to write a spike, from the tests' own list.

python tools/reading_spikes.py
"""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "spikes.md"
HEAD = """# Reading spikes

Attacks with another surrogate (`SwapSurrogate`, `ASSG`, `PDSG`, `RandomSurrogate`, `BPDA` with a
surrogate) need the distance to the threshold of every neuron. In networks of other code it is
read while the gradient is taken:

- Custom autograd functions are met where they are called. The comparison inside gives the
  potential; if none is seen, the function is computed once more as part of the graph, or its
  jumps are searched for.
- Comparisons of plain torch are followed until they become spikes: over masks that are stacked,
  copied or written by index, behind rising functions (ReLU, clamp, sigmoid) and rounding, and in
  straight-through expressions, which are recognized by the values that they give.
- A second comparison of the same potential, as for a reset, counts as detached where the spikes
  have a gradient of their own and it has none.
- Scripted code runs operation by operation, compiled code as it was written.

The same network gives the same gradients in each of these ways; a test holds every row to that.
The distance is in the units in which it is compared: `v / threshold > 1` has `v / threshold - 1`.
Each row is a re-creation in our own words of how the named code writes its spikes.

"""
TAIL = """
What cannot be read raises the flag [spikes-unread](../flags/spikes-unread.md), or
[spikes-unreached](../flags/spikes-unreached.md) if the model's own gradient does not pass it
either: functions of several inputs that other libraries compute, spikes drawn at random inside of
a function, a maximum or a sum over masks, straight-through sums without a comparison, and scripted
code with operations that have no counterpart in Python.
"""


def page() -> str:
    """The text of the page."""
    sys.path[:0] = [str(ROOT / "tests" / "gradients"), str(ROOT / "tests")]
    ways = importlib.import_module("ways").WAYS + importlib.import_module("rare_ways").RARE
    rows = "\n".join(f"| {way.name} | {way.seen_in} |" for way in ways)
    return f"{HEAD}| way of writing | seen in |\n|---|---|\n{rows}\n{TAIL}"


if __name__ == "__main__":
    PAGE.write_text(page())
