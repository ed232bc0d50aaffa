"""Block search: a local search by scores from the best point that is known.

A spiking network is piecewise constant, so the last step of a gradient attack often misses: the gradient says
where the loss would rise if the neurons were smooth. From a point that gradients brought close, small blocks
of pixels that move to a border of the budget break what is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spikeguard.attacks.batch import Batch, over_pixels
from spikeguard.attacks.loop import Attacked, Keep, search_by_queries
from spikeguard.attacks.random_search import check_image_search
from spikeguard.border import measures
from spikeguard.errors import UserError
from spikeguard.losses import margin
from spikeguard.models import Model, eval_mode, logits_of
from spikeguard.random import draws
from spikeguard.threat import Linf, Threat

SIDES = (5, 4, 3, 3, 2, 2, 1, 1, 1, 1)
"""Sides of the blocks of an image of 28 x 28, in pixels, each for a tenth of the queries."""
SHARES = (0.5, 0.25, 0.125, 0.0625)
"""Under L2 and L1: shares of the budget that a block may get."""
ROUNDING = 1e-6
"""What a point on the border stays inside, so that rounding needs no projection."""


def side(query: int, queries: int, height: int, width: int) -> int:
    """Side of the block at a query.

    The largest grows with the image; on the way to one pixel the sides shrink by the same powers.
    """
    smaller = min(height, width)
    power = math.log(SIDES[len(SIDES) * query // queries]) / math.log(max(SIDES))
    largest = max(max(SIDES) * smaller / 28, 1.0)
    return min(max(round(math.pow(largest, power)), 1), smaller)


@measures
def block_search(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    queries: int = 1000,
    more: int = 0,
    first: Tensor | None = None,
    seed: int = 0,
    index: Tensor | None = None,
) -> Attacked:
    """Local search by scores: moves small blocks of pixels of the best point; the last word after gradients.

    ``x``: floats ``[N, C, H, W]`` in [0, 1]; ``y``: int64 ``[N]``. ``first``: points ``[N, C, H, W]`` that
    other attacks found, where the search begins if their margin is higher than that of ``x``; without them it
    finds little. Under Linf all pixels of a block move to one border of the budget; under L2 and L1 the block
    gets a share of the budget, and the whole change is scaled to the border. A change stays if the margin
    does not fall. ``more``: queries after that for images within reach, whose margin has come at least
    halfway to 0. Draws depend on the seed, the sample's number (``index``, ``[N]``) and the query. A
    stochastic model is judged by one draw a query. UserError on bad arguments. Ours.

    >>> close = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=5, loss="margin")
    >>> found = sg.attacks.block_search(net, x, y, sg.Linf(8 / 255), queries=20, first=close.x)
    >>> bool((found.broken | (found.loss >= close.loss)).all())
    True
    """
    batch = Batch.of(x, y, threat, index, seed)
    check_image_search("block_search", x, queries)
    if first is not None and first.shape != x.shape:
        raise UserError(f"block_search: first has shape {tuple(first.shape)}, must be {tuple(x.shape)}")
    if more:
        check_image_search("block_search", x, more)
    found = _search(model, batch, (0, queries), first)
    if not more:
        return found
    start = _margins(model, batch, first)
    found = replace(found, forwards=found.forwards + len(x) * (1 if first is None else 2))
    reach = torch.nonzero(within_reach(start, found)).flatten()
    if not len(reach):
        return found
    again = _search(model, batch.select(reach), (queries, more), found.x[reach])
    return _joined(found, again, reach, queries)


def within_reach(start: Tensor, found: Attacked) -> Tensor:
    """Samples that are not broken, but whose margin came at least halfway from ``start`` ``[N]`` to 0.

    ``[N]`` bool. On three trained networks longer searches broke 5 of 8 such samples, and none of the others.
    """
    return ~found.broken & (found.loss - start >= -found.loss)


def _search(model: Model, batch: Batch, span: tuple[int, int], first: Tensor | None) -> Attacked:
    """The search with blocks that shrink once; ``span``: queries before it, queries."""
    before, queries = span
    propose_in = _to_corner if isinstance(batch.threat, Linf) else _with_share

    def propose(part: Batch, best: Tensor, query: int) -> Tensor:
        return propose_in(part, best, _Block.at(part, before + query, (query, queries)))

    return search_by_queries(model, batch, queries, propose, Keep(ties=True, first=first))


def _margins(model: Model, batch: Batch, first: Tensor | None) -> Tensor:
    """Where the search began, ``[N]``."""
    with eval_mode(model), torch.no_grad():
        value = margin(logits_of(model, batch.x), batch.y)
        if first is None:
            return value
        return torch.maximum(value, margin(logits_of(model, batch.project(first)), batch.y))


def _joined(found: Attacked, again: Attacked, rows: Tensor, before: int) -> Attacked:
    """The first result, with that of some ``rows`` after ``before`` queries in its place."""
    x, broken, loss, when = found.x.clone(), found.broken.clone(), found.loss.clone(), found.when.clone()
    x[rows], broken[rows], loss[rows] = again.x, again.broken, again.loss
    when[rows] = torch.where(again.when >= 0, before + again.when, -1)
    return Attacked(x, broken, loss, found.forwards + again.forwards, 0, when)


@dataclass(frozen=True)
class _Block:
    """A block of every sample: the ``mask`` ``[N, C, H, W]`` of its pixels, its ``sign`` ``[N, 1, 1, 1]``.

    And two more draws ``[N, 2]``, and whether it is a single pixel.
    """

    mask: Tensor
    sign: Tensor
    drawn: Tensor
    single: bool

    @classmethod
    def at(cls, batch: Batch, query: int, place: tuple[int, int]) -> _Block:
        """At a query: a uniform place, in all channels or, every other query, in one of them.

        ``place``: what its side depends on, the number of the query in its search, and of how many.
        """
        channels, height, width = batch.x.shape[1:]
        s = side(*place, height, width)
        drawn = batch.uniform(draws.key(batch.seed, "block search", query), 6)
        mask = window(drawn[:, :2], s, height, width)
        if query % 2 and channels > 1:
            chosen = torch.arange(channels, device=drawn.device) == (channels * drawn[:, 5:]).long()
            mask = mask & chosen[:, :, None, None]
        sign = (drawn[:, 2] - 0.5).sign().to(batch.x.dtype)
        return cls(mask.expand_as(batch.x), over_pixels(sign, batch.x), drawn[:, 3:5], s == 1)


def window(drawn: Tensor, s: int, height: int, width: int) -> Tensor:
    """The squares of side ``s`` at the places that two draws ``[N, 2]`` give, ``[N, 1, H, W]`` bool."""

    def strip(drawn: Tensor, length: int) -> Tensor:
        start = ((length - s + 1) * drawn[:, None]).long()
        place = torch.arange(length, device=drawn.device) - start
        return (place >= 0) & (place < s)

    return strip(drawn[:, 0], height)[:, None, :, None] & strip(drawn[:, 1], width)[:, None, None, :]


def _to_corner(batch: Batch, best: Tensor, block: _Block) -> Tensor:
    """Linf: the pixels of a block to ``x + eps`` or ``x - eps``; a single one to the border farther away."""
    eps = batch.threat.per_sample(batch.x)
    sign = block.sign
    if block.single:
        above = (batch.x + eps).clamp(max=1.0) - best
        below = best - (batch.x - eps).clamp(min=0.0)
        sign = torch.where(above == below, sign, (above - below).sign())
    return torch.where(block.mask, batch.x + eps * sign, best)


def _with_share(batch: Batch, best: Tensor, block: _Block) -> Tensor:
    """L2 and L1: a share of the budget for a block, in addition to what it has or in its place."""
    shares = torch.tensor(SHARES, device=best.device, dtype=best.dtype)
    share = shares[(len(SHARES) * block.drawn[:, 0]).long()]
    instead = over_pixels(block.drawn[:, 1] < 0.5, best)
    moved = best - batch.x
    given = over_pixels(share, best) * batch.threat.to_border(block.mask * block.sign, batch.x)
    whole = torch.where(instead & block.mask, 0.0, moved) + given
    return batch.x + (1 - ROUNDING) * batch.threat.to_border(whole, batch.x)
