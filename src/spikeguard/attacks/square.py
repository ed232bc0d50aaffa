"""Square attack: random search with squares of shrinking size; it needs scores, no gradient. Andriushchenko et al., ECCV 2020."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spikeguard import draws
from spikeguard.attacks.ascent import Attacked, Best, at_rest, is_random
from spikeguard.attacks.pgd import numbers, only_linf
from spikeguard.errors import UserError
from spikeguard.gradients import Model
from spikeguard.losses import margin
from spikeguard.threat import Threat, check_images

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def side(query: int, height: int, width: int, share: float = 0.8) -> int:
    """Side of the square at a query: it covers ``share`` of the image, halved at each of HALVINGS."""
    share *= 0.5 ** sum(query > at for at in HALVINGS)
    return min(max(round(math.sqrt(share * height * width)), 1), min(height, width))


def square(model: Model, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 5000, seed: int = 0, index: Tensor | None = None) -> Attacked:
    """Linf Square attack on ``x`` ``[N, C, H, W]`` in [0, 1]: starts at vertical stripes, keeps what raises the margin loss.

    Draws depend on (seed, sample number, query). A random model is judged by one draw a query. UserError on bad images.
    """
    check_images(x, y)
    only_linf(threat, "square")
    if queries < 1:
        raise UserError(f"square: queries = {queries} must be at least 1")
    index = numbers(index, x).to(x.device)
    x = x.detach()
    _, channels, height, width = x.shape
    with at_rest(model), torch.no_grad():
        is_random(model, x, y)
        best = Best(x, y, model(x), margin)
        for query in range(queries):
            rows = best.standing()
            if not len(rows):
                break
            clean, here, eps = x[rows], best.x[rows], threat.take(rows).per_sample(x[rows])
            drawn = draws.uniform(draws.key(seed, "square", query), index[rows], channels * width + 2)
            sign = (drawn[:, 2:] - 0.5).sign().to(x.dtype)
            if query == 0:
                candidate = clean + eps * sign.view(-1, channels, 1, width)
            else:
                s = side(query, height, width)
                top, left = (drawn[:, :2] * (torch.tensor([height, width], device=x.device) - s + 1)).long().unbind(1)
                inside = _span(top, s, height)[:, None, :, None] & _span(left, s, width)[:, None, None, :]
                candidate = torch.where(inside, clean + eps * sign[:, :channels, None, None], here)
            candidate = threat.take(rows).project(candidate, clean)
            logits = model(candidate)
            best.forwards += len(rows)
            best.note(rows, candidate, margin(logits, y[rows]), logits.argmax(1) != y[rows], query + 1)
    return best.result(x, threat)


def _span(first: Tensor, length: int, size: int) -> Tensor:
    position = torch.arange(size, device=first.device)
    return (position >= first[:, None]) & (position < first[:, None] + length)
