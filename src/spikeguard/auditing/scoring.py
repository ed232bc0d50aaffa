"""Who is right at which inputs.

Once and for all for most models, as a share of fresh draws for random ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from spikeguard.models import Model
from spikeguard.neurons import seed_noise
from spikeguard.random import draws
from spikeguard.random.streams import preserved_noise

CHOOSE_DRAWS, SCORE_DRAWS = 25, 100


@contextmanager
def drawn(model: Model, key: int) -> Iterator[None]:
    """All the model's randomness (its neurons' noise, torch's.

    Numpy's and Python's generators) follows from ``key``; put back afterwards.
    """
    plain, numbers = random.getstate(), np.random.get_state()
    kept = preserved_noise(model) if isinstance(model, nn.Module) else nullcontext()
    with (
        kept,
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
            random.setstate(plain)
            np.random.set_state(numbers)


def fresh_draws(
    model: Model, x: Tensor, y: Tensor, seed: int, count: int = SCORE_DRAWS, batch: int = 250
) -> Tensor:
    """Per sample the share of fresh draws of the model's noise at which it is right.

    An adversary knows its law, not the draw.
    """
    return over_draws(model, x, y, seed, count, batch)[0]


def over_draws(
    model: Model, x: Tensor, y: Tensor, seed: int, count: int = SCORE_DRAWS, batch: int = 250
) -> tuple[Tensor, Tensor]:
    """The same, and whether the class of the mean logits over these draws is right.

    Another classifier, told beside it. Both ``[N]``.
    """
    right, total = torch.zeros(len(x), device=x.device), torch.zeros((), device=x.device)
    with torch.no_grad():
        for draw in range(count):
            with drawn(model, draws.key(seed, "fresh draw", draw)):
                logits = torch.cat([model(a) for a in x.split(batch)])
            right += logits.argmax(1) == y
            total = total + logits
    return right / count, total.argmax(1) == y
