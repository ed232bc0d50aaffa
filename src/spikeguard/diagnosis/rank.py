"""How well a number separates two groups."""

from __future__ import annotations

import torch
from torch import Tensor


def auc(score: Tensor, positive: Tensor) -> float | None:
    """The chance that a positive one has a higher score than a negative one, ties counting half.

    ``score``, ``positive`` (bool): of one shape. None if there is only one group. The statistic of Mann and
    Whitney over the number of pairs.

    >>> from spikeguard.diagnosis.rank import auc
    >>> auc(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, False, False]))
    1.0
    """
    score, positive = score.flatten(), positive.flatten()
    yes = int(positive.sum())
    no = len(score) - yes
    if not yes or not no:
        return None
    _, place, count = torch.unique(score, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    rank = (last - (count.double() - 1) / 2)[place]
    return float((rank[positive].sum() - yes * (yes + 1) / 2) / (yes * no))
