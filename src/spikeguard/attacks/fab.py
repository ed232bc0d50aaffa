"""FAB: walks along the decision border towards the image, so that it finds small changes rather than high
losses. Croce and Hein, ICML 2020.

    x_{k+1} = clip((1 - a)(x_k + 1.05 d_k) + a (x + 1.05 e_k)),   a = min(|d_k| / (|d_k| + |e_k|), 0.1)

d_k and e_k are the smallest changes of x_k and of the image x that reach the border linearized at x_k without
leaving [0, 1]. A point that is misclassified is pulled back to 0.9 of its way from x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeguard.attacks._loop import Attacked, Best, random_start, sample_ids
from spikeguard.errors import UserError
from spikeguard.gradients import Estimator, Own
from spikeguard.losses import Targeted, margin
from spikeguard.models import Model, check_logits, eval_mode
from spikeguard.threat import L1, Linf, Threat, check_images

ALPHA, ETA, BETA = 0.1, 1.05, 0.9
TARGETS = 9
TINY = 1e-30


def to_border(x: Tensor, value: Tensor, gradient: Tensor, threat: Threat) -> Tensor:
    """The smallest ``d`` in the threat's norm with ``value + <gradient, d> = 0`` and ``x + d`` in [0, 1].

    All that leads there if none does.
    """
    flat, toward = x.flatten(1), -value.sign()[:, None] * gradient.flatten(1)
    room, slope = torch.where(toward > 0, 1 - flat, flat), toward.abs()
    scale = slope.amax(1, keepdim=True).clamp(min=TINY)
    slope, need = slope / scale, value.abs()[:, None] / scale
    length = (
        _greedy(slope, room, need)
        if isinstance(threat, L1)
        else _even(slope, room, need, torch.ones_like(slope) if isinstance(threat, Linf) else slope)
    )
    return (toward.sign() * length).view_as(x)


def _greedy(slope: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """L1: pixels move as far as they can, the steepest first, until the gain is ``need``."""
    order = slope.argsort(dim=1, descending=True, stable=True)
    steep, free = slope.gather(1, order), room.gather(1, order)
    missing = (need - (steep * free).cumsum(1) + steep * free).clamp(min=0)
    return torch.zeros_like(slope).scatter(1, order, torch.minimum(missing / steep.clamp(min=TINY), free))


def _even(slope: Tensor, room: Tensor, need: Tensor, rate: Tensor) -> Tensor:
    """Linf (rate 1), L2 (rate = slope).

    ``min(t rate, room)`` with the t whose gain ``sum slope min(t rate, room)`` is ``need``.
    """
    stop, order = (room / rate.clamp(min=TINY)).sort(dim=1, stable=True)
    gain, rise = (slope * room).gather(1, order), (slope * rate).gather(1, order)
    before = gain.cumsum(1) - gain
    rising = (
        rise.flip(1).cumsum(1).flip(1)
    )  # by how much t raises the gain while this pixel and those after it move
    reached = before + stop * rising
    k = (reached < need).sum(1, keepdim=True).clamp(max=slope.shape[1] - 1)
    t = ((need - before.gather(1, k)) / rising.gather(1, k).clamp(min=TINY)).clamp(0, 1 / TINY)
    return torch.minimum(t * rate, room)


class _Walk:
    """What all runs of one call share: the best points, the smallest norms, and when a sample is done."""

    def __init__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        steps: int,
        estimator: Estimator,
        until_broken: bool,
    ) -> None:
        self.model, self.x, self.y, self.threat, self.steps, self.estimator, self.until_broken = (
            model,
            x,
            y,
            threat,
            steps,
            estimator,
            until_broken,
        )
        with torch.no_grad():
            logits = model(x)
        self.best = Best(x, y, logits, margin)
        self.norm = torch.where(self.best.broken, 0.0, torch.inf).to(x.dtype)
        self.others = logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)[
            :, : logits.shape[1] - 1
        ]

    def towards(self, rank: int, start: Tensor) -> None:
        """One run towards the class of this rank, from ``start``."""
        rows = self.best.standing() if self.until_broken else torch.nonzero(self.norm).flatten()
        if not len(rows):
            return
        clean, labels, here, eps = (
            self.x[rows],
            self.y[rows],
            start[rows],
            self.threat.per_sample(self.x)[rows].flatten(),
        )
        loss = Targeted("margin", self.others[rows, rank])
        with self.estimator.open(self.model) as opened:
            for k in range(self.steps):
                gradient, value, _ = opened(here, labels, loss)
                d = to_border(here, value, gradient, self.threat)
                e = to_border(
                    clean, value + (gradient * (clean - here)).flatten(1).sum(1), gradient, self.threat
                )
                near, far = self.threat.length(d), self.threat.length(e)
                a = (near / (near + far).clamp(min=TINY)).clamp(max=ALPHA).view(-1, *[1] * (clean.dim() - 1))
                here = ((1 - a) * (here + ETA * d) + a * (clean + ETA * e)).clamp(0.0, 1.0)
                logits = opened.logits(here)
                wrong, length = logits.argmax(1) != labels, self.threat.length(here - clean)
                self.norm[rows] = torch.where(wrong, torch.minimum(self.norm[rows], length), self.norm[rows])
                inside = length <= eps
                self.best.note(
                    rows[inside], here[inside], margin(logits, labels)[inside], wrong[inside], k + 1
                )
                here = torch.where(wrong.view_as(a), clean + BETA * (here - clean), here)
                if self.until_broken and bool((wrong & inside).any()):
                    stand = torch.nonzero(~(wrong & inside)).flatten()
                    rows, clean, labels, here, eps = (
                        rows[stand],
                        clean[stand],
                        labels[stand],
                        here[stand],
                        eps[stand],
                    )
                    opened.select(stand)
                    loss.select(stand)
                    if not len(rows):
                        break
            self.best.forwards += opened.forwards
            self.best.backwards += opened.backwards


def _run(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    steps: int,
    restarts: int,
    targets: int | None,
    gradient: Estimator | None,
    seed: int,
    index: Tensor | None,
    until_broken: bool,
) -> _Walk:
    check_images(x, y)
    targets = TARGETS if targets is None else targets
    if steps < 1 or restarts < 1 or targets < 1:
        raise UserError(
            f"fab: steps = {steps}, restarts = {restarts} and targets = {targets} must be at least 1"
        )
    index, x = sample_ids(index, x), x.detach()
    with eval_mode(model):
        check_logits(model, x, y)
        walk = _Walk(model, x, y, threat, steps, gradient or Own(), until_broken)
        for restart in range(restarts):
            start = random_start(x, threat.scaled(0.5), index, seed, restart) if restart else x
            for rank in range(min(targets, walk.others.shape[1])):
                walk.towards(rank, start)
    return walk


def fab(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 100,
    restarts: int = 1,
    targets: int | None = None,
    gradient: Estimator | None = None,
    seed: int = 0,
    index: Tensor | None = None,
) -> Attacked:
    """FAB-T on ``x`` ``[N, C, H, W]`` in [0, 1] under Linf, L2 or L1, towards the ``targets`` highest wrong
    classes at ``x``, one by one (None: 9).

    The form that takes the nearest of all borders in every step is left out. Starts at x, in later restarts
    at a random point within eps / 2. A sample is broken, and goes no further, once a misclassified point lies
    within eps; ``loss`` is the margin. A random model is judged by one draw a query. UserError on bad images.
    """
    return _run(
        model, x, y, threat, steps, restarts, targets, gradient, seed, index, until_broken=True
    ).best.result(x.detach(), threat)


def minimal(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 100,
    restarts: int = 1,
    targets: int | None = None,
    gradient: Estimator | None = None,
    seed: int = 0,
    index: Tensor | None = None,
) -> Tensor:
    """The smallest norm of a misleading change that FAB-T finds, ``[N]``: 0 where the class is wrong at x,
    inf where none was found.

    The norm is the threat's; its eps only sets how far random starts lie. The rest as in ``fab``.
    """
    return _run(model, x, y, threat, steps, restarts, targets, gradient, seed, index, until_broken=False).norm
