"""Attacks by chance alone.

Random points of the ball, the control that every other attack has to beat, and a local search by scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeguard.attacks.batch import Batch, check_counts, over_pixels
from spikeguard.attacks.loop import Attacked, search_by_queries
from spikeguard.border import measures
from spikeguard.errors import UserError
from spikeguard.models import Model
from spikeguard.random import draws
from spikeguard.threat import L1, L2, Linf, Threat


def uniform_in_ball(u: Tensor, share: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """An offset uniform in the ball around ``x``, the box [0, 1] aside.

    Made of two uniform draws: ``u`` in (-1, 1) like ``x`` for the direction, ``share`` ``[N]`` in (0, 1) for
    the radius.
    """
    if isinstance(threat, Linf):
        return threat.random_offset(u, x)
    direction = torch.erfinv(u) if isinstance(threat, L2) else -u.sign() * torch.log1p(-u.abs())
    return threat.to_border(direction, x) * over_pixels(share, x) ** (1 / x[0].numel())


def corner(u: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """An offset on the border: all pixels, under L1 a random tenth, move up or down by the same amount."""
    size = u.abs().flatten(1)
    least = (
        size.topk(max(size.shape[1] // 10, 1), 1).values[:, -1]
        if isinstance(threat, L1)
        else torch.zeros_like(size[:, 0])
    )
    return threat.to_border(u.sign() * (u.abs() >= over_pixels(least, x)), x)


@measures
def random_noise(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    tries: int = 20,
    seed: int = 0,
    index: Tensor | None = None,
) -> Attacked:
    """Random points around each image, alternately uniform in the ball and on its border.

    ``x``: floats ``[N, C, H, W]`` in [0, 1]; ``y``: int64 ``[N]``. The point of highest margin is kept. Draws
    depend on the seed, the sample's number (``index``, ``[N]``) and the try. A stochastic model is judged by
    one draw a try. UserError on bad arguments.

    >>> from spikeguard.attacks import random_noise
    >>> found = random_noise(net, x, y, sg.L1(2.0), tries=4)
    >>> found.backwards
    0
    """
    batch = Batch.of(x, y, threat, index, seed)
    check_counts("random_noise", tries=tries)

    def propose(part: Batch, best: Tensor, k: int) -> Tensor:
        drawn = part.uniform(draws.key(seed, "noise", k), part.x[0].numel() + 1).to(part.x.dtype)
        u = (2 * drawn[:, 1:] - 1).view_as(part.x)
        return part.x + (
            corner(u, part.x, part.threat) if k % 2 else uniform_in_ball(u, drawn[:, 0], part.x, part.threat)
        )

    return search_by_queries(model, batch, tries, propose)


def check_image_search(attack: str, x: Tensor, queries: int) -> None:
    """UserError in the name of the attack if a search by patches of an image cannot run on ``x``."""
    if queries < 1:
        raise UserError(f"{attack}: queries = {queries} must be at least 1")
    if x.dim() != 4:
        raise UserError(f"{attack}: images of shape {tuple(x.shape)} must be [N, C, H, W]")


@measures
def random_search(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    queries: int = 200,
    seed: int = 0,
    index: Tensor | None = None,
) -> Attacked:
    """Local search by scores: changes a random patch or random pixels and keeps what raises the margin.

    ``x``: floats ``[N, C, H, W]`` in [0, 1]; ``y``: int64 ``[N]``. A change moves pixels of the best point so
    far by twice their even share of the budget, then back into it; it shrinks from the whole image to one
    pixel over the ``queries``. Draws depend on the seed, the sample's number (``index``, ``[N]``) and the
    query. A stochastic model is judged by one draw a query. UserError on bad arguments.

    >>> found = sg.random_search(net, x, y, sg.L2(0.5), queries=10)
    >>> bool((sg.L2(0.5).length(found.x - x) <= 0.5 + 1e-5).all())
    True
    """
    batch = Batch.of(x, y, threat, index, seed)
    check_image_search("random_search", x, queries)
    size = x[0].numel()

    def propose(part: Batch, best: Tensor, query: int) -> Tensor:
        share = size ** (-query / queries)
        drawn = part.uniform(draws.key(seed, "random search", query), 2 * size).to(part.x.dtype)
        where, signs = drawn[:, :size], (drawn[:, size:] - 0.5).sign().view_as(part.x)
        if query % 2:
            last = where.kthvalue(max(round(share * size), 1), 1, keepdim=True).values
            mask = (where <= last).view_as(part.x)
        else:
            mask, signs = _patch(where, share, part.x), signs[:, :, :1, :1].expand_as(part.x)
        change = 2 * mask * part.threat.to_border(signs, part.x)
        return part.x + (best - part.x + change)

    return search_by_queries(model, batch, queries, propose)


def _patch(drawn: Tensor, share: float, x: Tensor) -> Tensor:
    """A random square of this share of the image, ``[N, 1, H, W]``.

    It goes on at the other side where it meets an edge.
    """

    def strip(drawn: Tensor, length: int) -> Tensor:
        place = (torch.arange(length, device=x.device) - (length * drawn[:, None]).long()) % length
        return torch.lt(place, max(round(share**0.5 * length), 1))

    return strip(drawn[:, 0], x.shape[2])[:, None, :, None] & strip(drawn[:, 1], x.shape[3])[:, None, None, :]
