"""Scoring a random model: the share of fresh draws of its noise at which it is right."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from spikeguard.models import Model, is_wrong, logits_of
from spikeguard.neurons import seed_noise
from spikeguard.random import draws
from spikeguard.random.generators import private_generators, seeded_generators
from spikeguard.random.streams import preserved_noise

CHOOSE_DRAWS, SCORE_DRAWS = 25, 100


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
        torch.manual_seed(key)
        random.seed(key)
        np.random.seed(key % 2**32)
        if isinstance(model, nn.Module):
            seed_noise(model, key)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def fresh_draws(
    model: Model, x: Tensor, y: Tensor, seed: int, count: int = SCORE_DRAWS, batch: int = 250
) -> Tensor:
    """Share of fresh draws of the model's noise at which each sample is right, ``[N]``.

    An adversary knows the distribution of the noise, not the draw.
    """
    return over_draws(model, x, y, seed, count, batch)[0]


def over_draws(
    model: Model, x: Tensor, y: Tensor, seed: int, count: int = SCORE_DRAWS, batch: int = 250
) -> tuple[Tensor, Tensor]:
    """The share of right draws, and whether the class of the mean logits is right, both ``[N]``.

    The second is another classifier, reported beside the first.
    """
    right, total = (torch.zeros(size, dtype=torch.float32, device=x.device) for size in ((len(x),), ()))
    with torch.no_grad():
        for draw in range(count):
            with seeded(model, draws.key(seed, "fresh draw", draw)):
                logits = torch.cat([logits_of(model, a) for a in x.split(batch)])
            right += ~is_wrong(logits, y)
            total = total + logits
    return right / count, total.argmax(1) == y
