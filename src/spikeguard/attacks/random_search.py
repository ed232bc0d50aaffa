"""Attacks by chance alone.

Random points of the ball, the control that every other attack has to beat, and a local search by scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeguard.attacks._loop import Attacked, Best, sample_ids
from spikeguard.errors import UserError
from spikeguard.losses import margin
from spikeguard.models import Model, check_logits, eval_mode
from spikeguard.random import draws
from spikeguard.threat import L1, L2, Linf, Threat, check_images


def inside(u: Tensor, share: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Uniform in the ball around ``x``, the box aside, from uniform ``u`` in (-1.

    1) like ``x`` and ``share`` ``[N]`` in (0, 1).
    """
    if isinstance(threat, Linf):
        return threat.spread(u, x)
    shape = torch.erfinv(u) if isinstance(threat, L2) else -u.sign() * torch.log1p(-u.abs())
    return threat.stretch(shape, x) * share.view(-1, *[1] * (x.dim() - 1)) ** (1 / x[0].numel())


def corner(u: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Every pixel up or down by as much as the border allows; under L1 a random tenth of the pixels."""
    size = u.abs().flatten(1)
    least = (
        size.topk(max(size.shape[1] // 10, 1), 1).values[:, -1]
        if isinstance(threat, L1)
        else torch.zeros_like(size[:, 0])
    )
    return threat.stretch(u.sign() * (u.abs() >= least.view(-1, *[1] * (x.dim() - 1))), x)


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
    """Random points around ``x`` ``[N, C, H, W]``: uniform in the ball and on its border by turns; the one of
    highest margin is kept.

    Draws depend on (seed, sample number, try). A random model is judged by one draw a try. UserError on bad
    images.
    """
    check_images(x, y)
    if tries < 1:
        raise UserError(f"noise: tries = {tries} must be at least 1")
    index, x = sample_ids(index, x).to(x.device), x.detach()
    with eval_mode(model), torch.no_grad():
        check_logits(model, x, y)
        best = Best(x, y, model(x), margin)
        for k in range(tries):
            rows = best.standing()
            if not len(rows):
                break
            clean, budget = x[rows], threat.select(rows)
            drawn = draws.uniform(draws.key(seed, "noise", k), index[rows], x[0].numel() + 1).to(x.dtype)
            u = (2 * drawn[:, 1:] - 1).view_as(clean)
            _try(
                model,
                best,
                rows,
                clean,
                y,
                corner(u, clean, budget) if k % 2 else inside(u, drawn[:, 0], clean, budget),
                budget,
                k + 1,
            )
    return best.result(x, threat)


def check_search(who: str, x: Tensor, queries: int) -> None:
    """Refuse, in the name of ``who``, what no search by patches of an image can work on."""
    if queries < 1 or x.dim() != 4:
        raise UserError(
            f"{who}: queries = {queries} must be at least 1, images of shape {tuple(x.shape)} must be [N, "
            "C, H, W]"
        )


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
    """Local search by scores on ``x`` ``[N, C, H, W]`` in [0, 1]: changes a random patch or random pixels,
    keeps what raises the margin.

    A change moves pixels of the best point so far by twice their even share of the budget, then back into it;
    it shrinks from the whole image to one pixel. Draws depend on (seed, sample number, query). A random model
    is judged by one draw a query. UserError on bad images.
    """
    check_images(x, y)
    check_search("random_search", x, queries)
    index, x = sample_ids(index, x).to(x.device), x.detach()
    size = x[0].numel()
    with eval_mode(model), torch.no_grad():
        check_logits(model, x, y)
        best = Best(x, y, model(x), margin)
        for query in range(queries):
            rows = best.standing()
            if not len(rows):
                break
            clean, budget, share = x[rows], threat.select(rows), size ** (-query / queries)
            drawn = draws.uniform(draws.key(seed, "random search", query), index[rows], 2 * size).to(x.dtype)
            where, signs = drawn[:, :size], (drawn[:, size:] - 0.5).sign().view_as(clean)
            if query % 2:
                mask = (where <= where.kthvalue(max(round(share * size), 1), 1, keepdim=True).values).view_as(
                    clean
                )
            else:
                mask, signs = _patch(where, share, clean), signs[:, :, :1, :1].expand_as(clean)
            change = 2 * mask * budget.stretch(signs, clean)
            _try(model, best, rows, clean, y, best.x[rows] - clean + change, budget, query + 1)
    return best.result(x, threat)


def _patch(drawn: Tensor, share: float, x: Tensor) -> Tensor:
    """A random square of this share of the image, ``[N, 1, H, W]``.

    It goes on at the other side where it meets an edge.
    """

    def strip(drawn: Tensor, length: int) -> Tensor:
        place = (torch.arange(length, device=x.device) - (length * drawn[:, None]).long()) % length
        return torch.lt(place, max(round(share**0.5 * length), 1))

    return strip(drawn[:, 0], x.shape[2])[:, None, :, None] & strip(drawn[:, 1], x.shape[3])[:, None, None, :]


def _try(
    model: Model, best: Best, rows: Tensor, clean: Tensor, y: Tensor, moved: Tensor, budget: Threat, step: int
) -> None:
    candidate = budget.project(clean + moved, clean)
    logits = model(candidate)
    best.forwards += len(rows)
    best.note(rows, candidate, margin(logits, y[rows]), logits.argmax(1) != y[rows], step)
