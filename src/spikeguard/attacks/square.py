"""Square attack: random search with squares of shrinking size; it needs scores, no gradient. Andriushchenko
et al., ECCV 2020.

Under Linf a square takes the budget's corner. Under L2 one square gives up what it holds, another one gets
it, with the budget that was left, as a pulse: a peak and a trough side by side, fading outwards. Under L1 the
same with sums of absolute values, after "Mind the Box" (Croce and Hein, ICML 2021); here its squares go down
to single pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spikeguard.attacks._loop import Attacked, Best, sample_ids
from spikeguard.attacks.random_search import check_search
from spikeguard.losses import margin
from spikeguard.models import Model, check_logits, eval_mode
from spikeguard.random import draws
from spikeguard.threat import Linf, Threat, check_images

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SHARE, SHARE_OF_PULSES = 0.8, 0.1  # of the image that the first squares cover
TILES = 5  # pulses along a side at the start


def side(query: int, height: int, width: int, share: float = SHARE) -> int:
    """Side of the square at a query: it covers ``share`` of the image, halved at each of HALVINGS."""
    share *= 0.5 ** sum(query > at for at in HALVINGS)
    return min(max(round(math.sqrt(share * height * width)), 1), min(height, width))


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
    """Square attack on ``x`` ``[N, C, H, W]`` in [0, 1]: keeps what raises the margin loss.

    Draws depend on (seed, sample number, query). A random model is judged by one draw a query. UserError on
    bad images.
    """
    check_images(x, y)
    check_search("square", x, queries)
    index = sample_ids(index, x).to(x.device)
    x = x.detach()
    propose = _corner if isinstance(threat, Linf) else _pulse
    with eval_mode(model), torch.no_grad():
        check_logits(model, x, y)
        best = Best(x, y, model(x), margin)
        for query in range(queries):
            rows = best.standing()
            if not len(rows):
                break
            here = _Search(
                x[rows],
                best.x[rows],
                threat.select(rows),
                draws.key(seed, "square", query),
                index[rows],
                query,
            )
            candidate = here.threat.project(propose(here), here.clean)
            logits = model(candidate)
            best.forwards += len(rows)
            if (
                query == 0 and propose is _pulse
            ):  # the start counts, whatever it does to the loss: squares pass on what it holds
                best.loss[rows] = -math.inf
            best.note(rows, candidate, margin(logits, y[rows]), logits.argmax(1) != y[rows], query + 1)
    return best.result(x, threat)


@dataclass
class _Search:
    """Where the standing samples are, and what they may draw from at this query."""

    clean: Tensor
    at: Tensor
    threat: Threat
    key: int
    index: Tensor
    query: int

    def drawn(self, count: int) -> Tensor:
        """Uniform draws in (0, 1), ``[N, count]``."""
        return draws.uniform(self.key, self.index, count)

    def signs(self, drawn: Tensor) -> Tensor:
        """-1 or 1 of the same shape."""
        return (drawn - 0.5).sign().to(self.clean.dtype)

    def window(self, drawn: Tensor, s: int) -> tuple[Tensor, Tensor, Tensor]:
        """A square of side ``s`` for each of two draws a sample.

        Its mask ``[N, 1, H, W]``, and every row's and column's place in it.
        """
        height, width = self.clean.shape[-2:]
        top, left = (drawn * (torch.tensor([height, width], device=drawn.device) - s + 1)).long().unbind(1)
        down = torch.arange(height, device=drawn.device) - top[:, None]
        across = torch.arange(width, device=drawn.device) - left[:, None]
        inside = ((down >= 0) & (down < s))[:, None, :, None] & ((across >= 0) & (across < s))[
            :, None, None, :
        ]
        return inside, down.clamp(0, s - 1), across.clamp(0, s - 1)


def _corner(here: _Search) -> Tensor:
    """Vertical stripes first; then a square whose channels move to a border of the budget each."""
    channels, height, width = here.clean.shape[1:]
    drawn, eps = here.drawn(channels * width + 2), here.threat.per_sample(here.clean)
    signs = here.signs(drawn[:, 2:])
    if here.query == 0:
        return here.clean + eps * signs.view(-1, channels, 1, width)
    inside, _, _ = here.window(drawn[:, :2], side(here.query, height, width))
    return torch.where(inside, here.clean + eps * signs[:, :channels, None, None], here.at)


def _pulse(here: _Search) -> Tensor:
    """Tiles of pulses first.

    Then a square's share of the budget, and what was left of it, goes to a pulse in another square.
    """
    channels, height, width = here.clean.shape[1:]
    if here.query == 0:
        return here.clean + here.threat.stretch(_tiles(here), here.clean)
    power, least = (2, 3) if here.threat.norm == "l2" else (1, 1)  # under L1 a pixel alone may be worth most
    moved = here.at - here.clean
    s = min(
        max(side(here.query, height, width, SHARE_OF_PULSES), least) | 1, height, width
    )  # odd: there is a pixel in the middle
    drawn = here.drawn(5 + channels)
    taken, down, across = here.window(drawn[:, :2], s)
    given, _, _ = here.window(drawn[:, 2:4], s)
    lies = (drawn[:, 4] < 0.5)[:, None, None]
    place = (
        torch.where(lies, down[:, :, None], across[:, None, :]),
        torch.where(lies, across[:, None, :], down[:, :, None]),
    )
    shape = pulse(s).to(moved)[place]

    def weight(part: Tensor, dims: tuple[int, ...] = (2, 3)) -> Tensor:
        return part.abs().pow(power).sum(dims, keepdim=True)

    def unit(part: Tensor) -> Tensor:
        return part / weight(part).pow(1 / power).clamp(min=1e-12)

    fresh = unit(shape[:, None] * taken) * here.signs(drawn[:, 5:])[:, :, None, None]
    if s > 1:  # a single pixel would only keep its sign or lose all it has
        fresh = fresh + unit(moved * taken)
    left = (here.threat.per_sample(moved).pow(power) - weight(moved, (1, 2, 3))).clamp(min=0.0) / channels
    free = (left + weight(moved * (taken | given))).pow(1 / power)
    whole = torch.where(taken, free * unit(fresh), torch.where(given, 0.0, moved))
    return here.clean + here.threat.stretch(whole, here.clean)


def _tiles(here: _Search) -> Tensor:
    """Pulses side by side all over the image, up or down by lot in every channel."""
    n, channels, height, width = here.clean.shape
    s = max(min(height, width) // TILES, 1)
    down, across = height // s, width // s
    signs = here.signs(here.drawn(channels * down * across)).view(n, channels, down, 1, across, 1)
    tiles = (signs * pulse(s).to(signs)[:, None, :]).reshape(n, channels, down * s, across * s)
    whole = torch.zeros_like(here.clean)
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
    down, across = (torch.arange(height) - height // 2).abs(), (torch.arange(width) - width // 2).abs()
    steps = 1.0 / torch.arange(1, max(height // 2, width // 2) + 2).double().square()
    return steps.flip(0).cumsum(0).flip(0)[torch.maximum(down[:, None], across[None, :])]
