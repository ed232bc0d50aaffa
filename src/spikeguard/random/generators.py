"""Generators that a model keeps for itself, which no global seed reaches."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

Private = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


def private_generators(model: object) -> list[Private]:
    """The generators among the attributes of a model's modules, or of what a function refers to.

    >>> from spikeguard.random.generators import private_generators
    >>> own = torch.Generator()
    >>> private_generators(lambda x: x + torch.rand(x.shape, generator=own)) == [own]
    True
    """
    holders: list[object] = [model]
    if inspect.isfunction(model):
        names = inspect.getclosurevars(model)
        holders = [*names.nonlocals.values(), *names.globals.values()]
    found: dict[int, Private] = {}
    for holder in (h for h in holders if not inspect.ismodule(h)):
        parts = list(holder.modules()) if isinstance(holder, nn.Module) else [holder]
        values = [holder, *(v for part in parts for v in getattr(part, "__dict__", {}).values())]
        found |= {id(v): v for v in values if isinstance(v, Private)}
    return list(found.values())


@contextmanager
def seeded_generators(generators: list[Private], key: int) -> Iterator[None]:
    """Seed these generators, and restore their states at the end."""
    with ExitStack() as stack:
        for generator in generators:
            stack.callback(_seed(generator, key))
        yield


def _seed(generator: Private, key: int) -> Callable[[], object]:
    """Seed a generator; returns what restores it."""
    if isinstance(generator, torch.Generator):
        kept = generator.get_state()
        generator.manual_seed(key)
        return lambda: generator.set_state(kept)
    if isinstance(generator, random.Random):
        before = generator.getstate()
        generator.seed(key)
        return lambda: generator.setstate(before)
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator._bit_generator
    state = bits.state
    bits.state = type(bits)(key % 2**32).state
    return lambda: setattr(bits, "state", state)
