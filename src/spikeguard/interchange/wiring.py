"""The order of a graph's nodes; only graphs without loops, with one input and one output, have one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from spikeguard.errors import UserError


@dataclass(frozen=True)
class Wiring:
    """Which layer reads which: names in the order in which they run, and the sources of each.

    ``source`` is the graph's input; the sum of ``outputs`` is its output.
    """

    source: str
    inputs: Mapping[str, tuple[str, ...]]
    outputs: tuple[str, ...]


def wiring(kinds: Mapping[str, str], edges: Sequence[tuple[str, str]]) -> Wiring:
    """Of nodes (name -> kind) and edges; UserError on a loop, by name, and on a loose end."""
    ends = {}
    for kind in ("Input", "Output"):
        names = [name for name, k in kinds.items() if k == kind]
        if len(names) != 1:
            raise UserError(f"from_nir: the graph has {len(names)} nodes of kind {kind}, must have one")
        ends[kind] = names[0]
    sources: dict[str, list[str]] = {name: [] for name in kinds}
    for before, after in dict.fromkeys((str(a), str(b)) for a, b in edges):
        if before not in kinds or after not in kinds:
            raise UserError(f"from_nir: edge {before!r} -> {after!r} leads to no node")
        sources[after].append(before)
    order, ready = [], {ends["Input"]}
    waiting = [name for name in sorted(kinds) if name != ends["Input"]]
    while waiting:
        following = next((n for n in waiting if sources[n] and ready.issuperset(sources[n])), None)
        if following is None:
            _explain(waiting, sources)
        order.append(following)
        ready.add(following)
        waiting.remove(following)
    inputs = {name: tuple(sources[name]) for name in order if name != ends["Output"]}
    return Wiring(ends["Input"], inputs, tuple(sources[ends["Output"]]))


def _explain(waiting: Sequence[str], sources: Mapping[str, Sequence[str]]) -> NoReturn:
    """Why none of the waiting nodes can run."""
    for name in waiting:
        if not sources[name]:
            raise UserError(f"from_nir: node {name!r} has no input")
    name, path = waiting[0], [waiting[0]]
    while True:  # back along the edges until a node comes again
        name = next(s for s in sources[name] if s in waiting)
        if name in path:
            break
        path.append(name)
    raise UserError(
        f"from_nir: recurrent edge {name!r} -> {path[-1]!r}: spikeguard's layers are not recurrent"
    )
