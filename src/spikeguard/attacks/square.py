"""Square attack: random search with squares of shrinking size; it needs scores, no gradient. Andriushchenko
et al., ECCV 2020.

Under Linf a square moves to corners of the budget. Under L2 one square gives up its change and another one
gets it, with the budget that was left, as a pulse: a peak and a trough side by side, fading outward. Under L1
the same with sums of absolute values, after "Mind the Box" (Croce and Hein, ICML 2021); here its squares go
down to single pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spikeguard.attacks.batch import Batch
from spikeguard.attacks.loop import Attacked, Keep, search_by_queries
from spikeguard.attacks.random_search import check_image_search
from spikeguard.border import measures
from spikeguard.models import Model
from spikeguard.random import draws
from spikeguard.threat import Linf, Threat

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SHARE, SHARE_OF_PULSES = 0.8, 0.1  # of the image that the first squares cover
TILES = 5  # pulses along a side at the start


def side(query: int, height: int, width: int, share: float = SHARE) -> int:
    """Side of the square at a query: it covers ``share`` of the image, halved at each of HALVINGS."""
    share *= 0.5 ** sum(query > at for at in HALVINGS)
    return min(max(round(math.sqrt(share * height * width)), 1), min(height, width))


@measures
def square(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    queries: int = 5000,
    seed: int = 0,
    index: Tensor | None = None,
) -> Attacked:
    """Square attack: random search by scores with squares of shrinking size. Andriushchenko et al., ECCV
    2020.

    ``x``: floats ``[N, C, H, W]`` in [0, 1]; ``y``: int64 ``[N]``. Keeps what raises the margin. Draws depend
    on the seed, the sample's number (``index``, ``[N]``) and the query. A stochastic model is judged by one
    draw a query. UserError on bad arguments.

    >>> found = sg.square(net, x, y, sg.Linf(8 / 255), queries=10)
    >>> bool(((found.x - x).abs() <= 8 / 255 + 1e-6).all())
    True
    """
    batch = Batch.of(x, y, threat, index, seed)
    check_image_search("square", x, queries)

    def propose(part: Batch, best: Tensor, query: int) -> Tensor:
        return proposal(Query(part, best, draws.key(seed, "square", query), query))

    # under L2 and L1 squares pass on the budget of the first proposal, so that it must be kept
    return search_by_queries(model, batch, queries, propose, Keep(start=not isinstance(threat, Linf)))


@dataclass(frozen=True)
class Query:
    """One query: the samples, their best points so far, and the key of its draws."""

    batch: Batch
    best: Tensor
    key: int
    number: int

    @property
    def clean(self) -> Tensor:
        """The clean images ``[N, C, H, W]``."""
        return self.batch.x

    @property
    def threat(self) -> Threat:
        """The threat."""
        return self.batch.threat

    def uniform(self, count: int) -> Tensor:
        """Uniform draws in (0, 1), ``[N, count]``."""
        return self.batch.uniform(self.key, count)

    def signs(self, drawn: Tensor) -> Tensor:
        """-1 or 1 of the same shape."""
        return (drawn - 0.5).sign().to(self.clean.dtype)

    def window(self, drawn: Tensor, s: int) -> tuple[Tensor, Tensor, Tensor]:
        """A square of side ``s`` at the place that two draws a sample give.

        Its mask ``[N, 1, H, W]``, and every row's and column's place in it.
        """
        height, width = self.clean.shape[-2:]
        top, left = (drawn * (torch.tensor([height, width], device=drawn.device) - s + 1)).long().unbind(1)
        down = torch.arange(height, device=drawn.device) - top[:, None]
        across = torch.arange(width, device=drawn.device) - left[:, None]
        rows, columns = (down >= 0) & (down < s), (across >= 0) & (across < s)
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        return inside, down.clamp(0, s - 1), across.clamp(0, s - 1)


def proposal(query: Query) -> Tensor:
    """The points to query, ``[N, C, H, W]``, before projection."""
    return _corner(query) if isinstance(query.threat, Linf) else _pulse(query)


def _corner(query: Query) -> Tensor:
    """Vertical stripes first; then a square whose channels each move to a border of the budget."""
    channels, height, width = query.clean.shape[1:]
    drawn, eps = query.uniform(channels * width + 2), query.threat.per_sample(query.clean)
    signs = query.signs(drawn[:, 2:])
    if query.number == 0:
        return query.clean + eps * signs.view(-1, channels, 1, width)
    inside, _, _ = query.window(drawn[:, :2], side(query.number, height, width))
    return torch.where(inside, query.clean + eps * signs[:, :channels, None, None], query.best)


def _pulse(query: Query) -> Tensor:
    """Tiles of pulses first.

    Then a square's share of the budget, and what was left of it, goes to a pulse in another square.
    """
    channels, height, width = query.clean.shape[1:]
    if query.number == 0:
        return query.clean + query.threat.to_border(_tiles(query), query.clean)
    # under L1 a single pixel may be worth most
    power, least = (2, 3) if query.threat.norm == "l2" else (1, 1)
    moved = query.best - query.clean
    # odd, so that there is a pixel in the middle
    s = min(max(side(query.number, height, width, SHARE_OF_PULSES), least) | 1, height, width)
    drawn = query.uniform(5 + channels)
    taken, down, across = query.window(drawn[:, :2], s)
    given, _, _ = query.window(drawn[:, 2:4], s)
    vertical = (drawn[:, 4] < 0.5)[:, None, None]
    place = (
        torch.where(vertical, down[:, :, None], across[:, None, :]),
        torch.where(vertical, across[:, None, :], down[:, :, None]),
    )
    shape = pulse(s).to(moved)[place]

    def weight(part: Tensor, dims: tuple[int, ...] = (2, 3)) -> Tensor:
        return part.abs().pow(power).sum(dims, keepdim=True)

    def unit(part: Tensor) -> Tensor:
        return part / weight(part).pow(1 / power).clamp(min=1e-12)

    fresh = unit(shape[:, None] * taken) * query.signs(drawn[:, 5:])[:, :, None, None]
    if s > 1:  # a single pixel would only keep its sign or lose all it has
        fresh = fresh + unit(moved * taken)
    left = (query.threat.per_sample(moved).pow(power) - weight(moved, (1, 2, 3))).clamp(min=0.0) / channels
    free = (left + weight(moved * (taken | given))).pow(1 / power)
    whole = torch.where(taken, free * unit(fresh), torch.where(given, 0.0, moved))
    return query.clean + query.threat.to_border(whole, query.clean)


def _tiles(query: Query) -> Tensor:
    """Pulses side by side all over the image, up or down at random in every channel."""
    n, channels, height, width = query.clean.shape
    s = max(min(height, width) // TILES, 1)
    down, across = height // s, width // s
    signs = query.signs(query.uniform(channels * down * across)).view(n, channels, down, 1, across, 1)
    tiles = (signs * pulse(s).to(signs)[:, None, :]).reshape(n, channels, down * s, across * s)
    whole = torch.zeros_like(query.clean)
    top, left = (height - down * s) // 2, (width - across * s) // 2
    whole[:, :, top : top + down * s, left : left + across * s] = tiles
    return whole


@lru_cache
def pulse(s: int) -> Tensor:
    """A peak over a trough, ``[s, s]``.

    Each half is a stack of squares around its middle, the k-th ``(k + 1)^-2`` high; both are as long.
    """
    halves = [(1, _stack(s // 2, s)), (-1, _stack(s - s // 2, s))]
    whole = torch.cat([sign * half / half.square().sum().sqrt() for sign, half in halves if len(half)])
    return whole / whole.square().sum().sqrt()


def _stack(height: int, width: int) -> Tensor:
    down, across = (
        (torch.arange(height, device="cpu") - height // 2).abs(),
        (torch.arange(width, device="cpu") - width // 2).abs(),
    )
    steps = 1.0 / torch.arange(1, max(height // 2, width // 2) + 2, device="cpu").double().square()
    return steps.flip(0).cumsum(0).flip(0)[torch.maximum(down[:, None], across[None, :])]
