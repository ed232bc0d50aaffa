"""Does a model give the same answer to the same images: again, under the same draws, in another batch?"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from spikeguard.models import Model, logits_of, moved, rounding, scale
from spikeguard.neurons import seed_noise
from spikeguard.random import draws
from spikeguard.random.generators import private_generators, seeded_generators
from spikeguard.random.streams import preserved_noise
from spikeguard.stats import share_above

BATCHES = (1, 7, 50)
CHANGED = 0.02
"""Share of classes that may change with the batch: a last-bit difference of a kernel can flip a spike."""


@contextmanager
def seeded(model: Model, key: int) -> Iterator[None]:
    """Make all randomness of the model follow from ``key``, and restore the generators at the end.

    That is the noise of its neurons, the global generators of torch, numpy and Python, and those that the
    model keeps.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    kept = preserved_noise(model) if isinstance(model, nn.Module) else nullcontext()
    with (
        kept,
        seeded_generators(private_generators(model), key),
        torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_available() else []),
    ):
        # without an accelerator torch.manual_seed formats the stack at every call, for one that might come
        seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
        seed(key)
        random.seed(key)
        np.random.seed(key % 2**32)
        if isinstance(model, nn.Module):
            seed_noise(model, key)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def same(model: Model, x: Tensor, random: bool) -> Tensor:
    """Logits, under the same draw each time if the model is random."""
    with torch.no_grad():
        if not random:
            return logits_of(model, x).detach()
        with seeded(model, draws.key("check", 0)):
            return logits_of(model, x).detach()


def stateful(model: Model, x: Tensor) -> bool:
    """Whether the model gives other logits the second time although all random generators are set again.

    Such a model is not random: it carries state. In between it sees other images.
    """
    first = same(model, x[:8], True)
    same(model, 1 - x[:8], True)
    again = same(model, x[:8], True)
    return bool((moved(first, again) > rounding(first)).any())


def changed_by_batch(model: Model, x: Tensor) -> dict[str, Tensor]:
    """Which images ``[N]`` change their class alone, in small batches, in reversed order; ties aside."""
    whole = same(model, x, False)
    others = {}
    for b in BATCHES:
        if b < len(x):
            others[f"batches of {b}"] = torch.cat([same(model, part, False) for part in x.split(b)])
    others["reversed order"] = same(model, x.flip(0), False).flip(0)
    return {name: other_class(whole, other) for name, other in others.items()}


def other_class(first: Tensor, other: Tensor) -> Tensor:
    """Images whose class differs, ``[N]`` bool; where two classes tie, rounding may choose either."""
    top, rival = first.argmax(1), other.argmax(1)
    ahead = (first.gather(1, top[:, None]) - first.gather(1, rival[:, None])).squeeze(1)
    return (top != rival) & (ahead > rounding(first) * scale(first))


def more_than(share: float, differs: Tensor) -> bool:
    """Whether a significant part of the images differ, more than this share: a few may by rounding."""
    return share_above(int(differs.sum()), len(differs)) > share
