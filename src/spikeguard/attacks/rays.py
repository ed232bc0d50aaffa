"""RayS: a hard-label attack that needs nothing of a model but its classes. Chen and Gu, KDD 2020.

Looks for the sign vector d along which the border is nearest: flips one block of d after another, the whole
image first, then halves, quarters and so on down to pixels. A flip that still misleads at the best radius so
far is kept, and the radius is then halved down to the border. The published attack is one under Linf. Under
L2 and L1 d may be 0, too: a block is tried with both its other values, at the radius of the same length, so
that what is left as it is pays for what moves (reckoned without the box, which was measured to find more).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeguard.attacks._loop import Attacked, Best, sample_ids
from spikeguard.errors import UserError
from spikeguard.models import Model, check_logits, eval_mode
from spikeguard.threat import Threat, check_images

RESOLUTION, SHARE = (
    1e-3,
    2e-2,
)  # where bisection ends: a radius under Linf, a share of the radius under L2 and L1


def wrong(logits: Tensor, y: Tensor) -> Tensor:
    """1 where the class is wrong, else 0, ``[N]``: all that the attack may see."""
    return (logits.argmax(1) != y).to(logits.dtype)


class _Rays:
    """The search of every standing sample, each at a query of its own.

    It tries another value of a block, or bisects the radius of the one kept.
    """

    def __init__(self, x: Tensor, threat: Threat) -> None:
        flat = x.flatten(1)
        self.power = {"linf": 0.0, "l2": 0.5, "l1": 1.0}[
            threat.norm
        ]  # a length is the radius times so many pixels to this power
        self.signs, self.position = torch.ones_like(flat), torch.arange(flat.shape[1], device=x.device)
        self.before = self.signs  # of the block under trial, before its first trial
        self.low, self.high = (
            torch.zeros_like(flat[:, 0]),
            torch.ones_like(flat[:, 0]),
        )  # radius 1 reaches a corner of the box
        self.bisecting, self.second = torch.zeros(2, len(x), dtype=torch.bool, device=x.device)
        self.first = torch.full(
            (len(x),), flat.shape[1], device=x.device
        )  # the block under trial; the first one is empty
        self.size = torch.full_like(self.first, 2 * flat.shape[1])

    def query(self) -> tuple[Tensor, Tensor]:
        """Signs and radius to ask for."""
        block = (
            (self.position >= self.first[:, None])
            & (self.position < (self.first + self.size)[:, None])
            & ~self.bisecting[:, None]
        )
        still = self.before == 0
        other = torch.where(
            self.second[:, None], torch.where(still, -1.0, 0.0), torch.where(still, 1.0, -self.before)
        )
        signs = torch.where(block, other, self.signs)
        radius = self.high
        if self.power:
            more = (self.signs.abs().sum(1) / signs.abs().sum(1).clamp(min=1)) ** self.power
            radius = (radius * more).clamp(max=1.0)
        return signs, torch.where(self.bisecting, (self.low + self.high) / 2, radius)

    def answer(self, signs: Tensor, radius: Tensor, misled: Tensor) -> None:
        """What to do with the model's answer: keep or drop the change, or halve the bracket.

        Then perhaps on to the next value or block.
        """
        self.signs = torch.where(misled[:, None], signs, self.signs)
        self.high = torch.where(misled, radius, self.high)
        self.low = torch.where(self.bisecting, torch.where(misled, self.low, radius), 0.0)
        self.bisecting = (self.bisecting | misled) & (
            self.high - self.low > (SHARE * self.high if self.power else RESOLUTION)
        )
        done = ~self.bisecting
        if self.power:
            single = self.second | (self.first >= len(self.position))  # the empty block has no other values
            self.second, done = done & ~single | self.second & ~done, done & single
        self.before = torch.where(done[:, None], self.signs, self.before)
        self.first = torch.where(done, self.first + self.size, self.first)
        over = done & (self.first >= len(self.position))
        self.size, self.first = (
            torch.where(over, (self.size + 1) // 2, self.size),
            torch.where(over, 0, self.first),
        )

    def select(self, rows: Tensor) -> None:
        self.signs, self.low, self.high, self.bisecting = (
            self.signs[rows],
            self.low[rows],
            self.high[rows],
            self.bisecting[rows],
        )
        self.first, self.size, self.second = self.first[rows], self.size[rows], self.second[rows]
        self.before = self.before[rows]


def rays(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    queries: int = 1000,
    seed: int = 0,
    index: Tensor | None = None,
) -> Attacked:
    """RayS on ``x`` ``[N, C, H, W]`` in [0, 1]: ``queries`` classes a sample; a sample is done once the
    change is no longer than eps.

    ``loss`` is 1 where the class is wrong, else 0. It draws nothing: ``seed`` and ``index`` are there for a
    call like the others'. A random model is judged by one draw a query. UserError on bad images.
    """
    check_images(x, y)
    if queries < 1:
        raise UserError(f"rays: queries = {queries} must be at least 1")
    sample_ids(index, x)
    x = x.detach()
    with eval_mode(model), torch.no_grad():
        check_logits(model, x, y)
        best = Best(x, y, model(x), wrong)
        rows, eps = best.standing(), threat.per_sample(x).flatten()
        search = _Rays(x[rows], threat)
        for query in range(queries):
            if not len(rows):
                break
            signs, radius = search.query()
            candidate = (x[rows] + (radius[:, None] * signs).view_as(x[rows])).clamp(0.0, 1.0)
            loss = wrong(model(candidate), y[rows])
            misled, inside = loss > 0, threat.length(candidate - x[rows]) <= eps[rows]
            best.forwards += len(rows)
            search.answer(signs, radius, misled)
            broken = misled & inside
            best.note(rows[broken], candidate[broken], loss[broken], broken[broken], query + 1)
            stand = torch.nonzero(~broken).flatten()
            if len(stand) < len(rows):
                rows = rows[stand]
                search.select(stand)
    return best.result(x, threat)
