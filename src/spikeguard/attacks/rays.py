"""RayS: a hard-label attack that needs nothing of a model but its classes. Chen and Gu, KDD 2020.

Searches for the sign vector d along which the decision boundary is nearest: flips one block of d after
another, the whole image first, then halves, quarters and so on down to pixels. A flip that misleads at the
best radius so far is kept, and the radius is then halved down to the boundary. The published attack is one
under Linf. Under L2 and L1 entries of d may also be 0: a block is tried with both its other values, at the
radius of the same length, so that pixels that stay pay for pixels that move (computed without the box, which
was measured to find more).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeguard.attacks.batch import Batch, PerSample, check_counts
from spikeguard.attacks.loop import Attacked, Best
from spikeguard.border import measures
from spikeguard.models import Model, eval_mode, is_wrong, logits_of
from spikeguard.threat import Threat
from spikeguard.wrapping.contact import steady_answers

POWERS = {"linf": 0.0, "l2": 0.5, "l1": 1.0}
"""A change of this norm is as long as its radius times the number of moved pixels to this power."""
RESOLUTION, SHARE = 1e-3, 2e-2
"""Where bisection ends: a radius under Linf, a share of the radius under L2 and L1."""


def wrong_or_right(logits: Tensor, y: Tensor) -> Tensor:
    """1 where the class is wrong, else 0, ``[N]``: all that the attack may see."""
    return is_wrong(logits, y).to(logits.dtype)


class _Rays(PerSample):
    """The search of every standing sample, each at a query of its own.

    It tries another value of a block, or bisects the radius of the one kept.
    """

    def __init__(self, batch: Batch) -> None:
        flat = batch.x.flatten(1)
        self.power, self.pixels = POWERS[batch.threat.norm], flat.shape[1]
        self.signs = torch.ones_like(flat)
        self.before = self.signs  # signs of the block on trial, before its first trial
        self.low = torch.zeros_like(flat[:, 0])
        self.high = torch.ones_like(flat[:, 0])  # radius 1 reaches a corner of the box
        self.bisecting, self.second_value = torch.zeros(2, len(flat), dtype=torch.bool, device=flat.device)
        # the first pixel of the block on trial and the block's size; the block at the start is empty
        self.first_pixel = torch.full((len(flat),), self.pixels, dtype=torch.int64, device=flat.device)
        self.size = torch.full_like(self.first_pixel, 2 * self.pixels)

    def query(self) -> tuple[Tensor, Tensor]:
        """Signs ``[N, pixels]`` and radius ``[N]`` of the next query."""
        position = torch.arange(self.pixels, device=self.signs.device)
        block = (
            (position >= self.first_pixel[:, None])
            & (position < (self.first_pixel + self.size)[:, None])
            & ~self.bisecting[:, None]
        )
        zero = self.before == 0
        other = torch.where(
            self.second_value[:, None], -zero.to(self.before), torch.where(zero, 1.0, -self.before)
        )
        signs = torch.where(block, other, self.signs)
        radius = self.high
        if self.power:
            more = (self.signs.abs().sum(1) / signs.abs().sum(1).clamp(min=1)) ** self.power
            radius = (radius * more).clamp(max=1.0)
        return signs, torch.where(self.bisecting, (self.low + self.high) / 2, radius)

    def answer(self, signs: Tensor, radius: Tensor, misled: Tensor) -> None:
        """Use the model's answer: keep or drop the change, or halve the bracket.

        Then perhaps go on to the next value or block.
        """
        self.signs = torch.where(misled[:, None], signs, self.signs)
        self.high = torch.where(misled, radius, self.high)
        self.low = torch.where(self.bisecting, torch.where(misled, self.low, radius), 0.0)
        self.bisecting = (self.bisecting | misled) & (
            self.high - self.low > (SHARE * self.high if self.power else RESOLUTION)
        )
        done = ~self.bisecting
        if self.power:
            single = self.second_value | (
                self.first_pixel >= self.pixels
            )  # the empty block has no other value
            self.second_value, done = done & ~single | self.second_value & ~done, done & single
        self.before = torch.where(done[:, None], self.signs, self.before)
        self.first_pixel = torch.where(done, self.first_pixel + self.size, self.first_pixel)
        over = done & (self.first_pixel >= self.pixels)
        self.size = torch.where(over, (self.size + 1) // 2, self.size)
        self.first_pixel = torch.where(over, 0, self.first_pixel)


@measures
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
    """RayS: searches for the nearest boundary along sign vectors, from classes alone. Chen and Gu, KDD 2020.

    ``x``: floats ``[N, C, H, W]`` in [0, 1]; ``y``: int64 ``[N]``. ``queries``: classes read per sample; a
    sample stops once its change is no longer than eps. ``loss`` of the result is 1 where the class is wrong,
    else 0. The attack draws nothing: ``seed`` and ``index`` exist so that all attacks are called the same
    way. A stochastic model is judged by one draw a query. UserError on bad arguments.

    >>> found = sg.rays(net, x, y, sg.Linf(0.1), queries=20)
    >>> bool(((found.x - x).abs() <= 0.1 + 1e-6).all())
    True
    """
    batch = Batch.of(x, y, threat, index, seed)
    check_counts("rays", queries=queries)
    with eval_mode(model), torch.no_grad():
        steady_answers(model, batch.x, y)
        best = Best(batch, logits_of(model, batch.x), wrong_or_right)
        rows = best.standing()
        part = batch.select(rows)
        search = _Rays(part)
        for query in range(queries):
            if not len(rows):
                break
            signs, radius = search.query()
            candidate = (part.x + (radius[:, None] * signs).view_as(part.x)).clamp(0.0, 1.0)
            loss = wrong_or_right(logits_of(model, candidate), part.y)
            misled, inside = loss > 0, threat.length(candidate - part.x) <= part.eps
            best.forwards += len(rows)
            search.answer(signs, radius, misled)
            broken = misled & inside
            best.note(rows[broken], candidate[broken], loss[broken], broken[broken], query + 1)
            if bool(broken.any()):
                stand = torch.nonzero(~broken).flatten()
                rows, part = rows[stand], part.select(stand)
                search.select(stand)
    return best.result(batch)
