"""Scoring a random model: the share of fresh draws of its noise at which it is right."""

from __future__ import annotations

import torch
from torch import Tensor

from spikeguard.models import Model, is_wrong, logits_of
from spikeguard.random import draws
from spikeguard.wrapping.repeatable import seeded

CHOOSE_DRAWS, SCORE_DRAWS = 25, 100


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
