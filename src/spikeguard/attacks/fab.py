"""FAB: walks along the decision boundary toward the image, so that it finds small changes rather than high
losses. Croce and Hein, ICML 2020.

    x_{k+1} = clip((1 - a)(x_k + 1.05 d_k) + a (x + 1.05 e_k)),   a = min(|d_k| / (|d_k| + |e_k|), 0.1)

d_k and e_k are the smallest changes of x_k and of the image x that reach the boundary linearized at x_k
without leaving [0, 1]. A point that is misclassified is pulled back to 0.9 of its way from x.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spikeguard.attacks.batch import Batch, check_counts, over_pixels, random_start
from spikeguard.attacks.loop import Attacked
from spikeguard.attacks.nearest import Nearest
from spikeguard.border import measures
from spikeguard.gradients import Estimator, Own
from spikeguard.losses import Targeted, wrong_classes
from spikeguard.models import Model, eval_mode
from spikeguard.threat import L1, Linf, Threat
from spikeguard.wrapping.contact import steady_answers

ALPHA, ETA, BETA = 0.1, 1.05, 0.9
TARGETS = 9
TINY = 1e-30


def boundary_step(x: Tensor, value: Tensor, gradient: Tensor, threat: Threat) -> Tensor:
    """The smallest ``d`` in the threat's norm with ``value + <gradient, d> = 0`` and ``x + d`` in [0, 1].

    The one that comes closest to the value 0 if none reaches it. ``value``: ``[N]``; ``gradient`` like ``x``.
    """
    flat, toward = x.flatten(1), -value.sign()[:, None] * gradient.flatten(1)
    room, slope = torch.where(toward > 0, 1 - flat, flat), toward.abs()
    scale = slope.amax(1, keepdim=True).clamp(min=TINY)
    slope, need = slope / scale, value.abs()[:, None] / scale
    if isinstance(threat, L1):
        length = _steepest_first(slope, room, need)
    else:
        length = _all_at_once(
            slope, room, need, torch.ones_like(slope) if isinstance(threat, Linf) else slope
        )
    return (toward.sign() * length).view_as(x)


def _steepest_first(slope: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """L1: pixels move as far as they can, the steepest first, until the gain is ``need``."""
    order = slope.argsort(dim=1, descending=True, stable=True)
    steep, free = slope.gather(1, order), room.gather(1, order)
    missing = (need - (steep * free).cumsum(1) + steep * free).clamp(min=0)
    return torch.zeros_like(slope).scatter(1, order, torch.minimum(missing / steep.clamp(min=TINY), free))


def _all_at_once(slope: Tensor, room: Tensor, need: Tensor, rate: Tensor) -> Tensor:
    """Linf (rate 1), L2 (rate = slope).

    ``min(t rate, room)`` with the t whose gain ``sum slope min(t rate, room)`` is ``need``.
    """
    stop, order = (room / rate.clamp(min=TINY)).sort(dim=1, stable=True)
    gain, rise = (slope * room).gather(1, order), (slope * rate).gather(1, order)
    before = gain.cumsum(1) - gain
    # by how much t raises the gain while this pixel and those after it move
    rising = rise.flip(1).cumsum(1).flip(1)
    reached = before + stop * rising
    k = (reached < need).sum(1, keepdim=True).clamp(max=slope.shape[1] - 1)
    t = ((need - before.gather(1, k)) / rising.gather(1, k).clamp(min=TINY)).clamp(0, 1 / TINY)
    return torch.minimum(t * rate, room)


@dataclass(frozen=True)
class _Settings:
    steps: int
    restarts: int
    targets: int
    estimator: Estimator


def _run_toward(nearest: Nearest, classes: Tensor, start: Tensor, settings: _Settings) -> None:
    """One run from ``start`` toward one wrong class per sample (``classes``: ``[N]``)."""
    rows = nearest.active()
    if not len(rows):
        return
    batch, here, loss = nearest.batch.select(rows), start[rows], Targeted("margin", classes[rows])
    threat = batch.threat
    with settings.estimator.open(nearest.model) as opened:
        for k in range(settings.steps):
            gradient, value, _ = opened(here, batch.y, loss)
            d = boundary_step(here, value, gradient, threat)
            there = value + (gradient * (batch.x - here)).flatten(1).sum(1)
            e = boundary_step(batch.x, there, gradient, threat)
            near, far = threat.length(d), threat.length(e)
            a = over_pixels((near / (near + far).clamp(min=TINY)).clamp(max=ALPHA), here)
            here = ((1 - a) * (here + ETA * d) + a * (batch.x + ETA * e)).clamp(0.0, 1.0)
            wrong, done = nearest.note(rows, batch, here, opened.logits(here), k + 1)
            here = torch.where(wrong.view_as(a), batch.x + BETA * (here - batch.x), here)
            if bool(done.any()):
                stand = torch.nonzero(~done).flatten()
                rows, here, batch, loss = rows[stand], here[stand], batch.select(stand), loss.select(stand)
                opened.select(stand)
                if not len(rows):
                    break
        nearest.best.count(opened)


def _search(model: Model, batch: Batch, settings: _Settings, until_broken: bool) -> Nearest:
    check_counts("fab", steps=settings.steps, restarts=settings.restarts, targets=settings.targets)
    with eval_mode(model):
        steady_answers(model, batch.x, batch.y)
        nearest = Nearest(model, batch, until_broken)
        classes = wrong_classes(nearest.logits, batch.y)
        half = replace(batch, threat=batch.threat.scaled(0.5))
        for restart in range(settings.restarts):
            start = random_start(half, restart) if restart else batch.x
            for rank in range(min(settings.targets, classes.shape[1])):
                _run_toward(nearest, classes[:, rank], start, settings)
    return nearest


@measures
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
    """FAB-T: a walk along the decision boundary that finds small changes. Croce and Hein, ICML 2020.

    ``x``: floats ``[N, C, H, W]`` in [0, 1]; ``y``: int64 ``[N]``; threat Linf, L2 or L1. ``targets``: how
    many of the highest wrong classes at ``x``, one after another (None: 9); the untargeted form is left out.
    Starts at ``x``, in later restarts at a random point within eps / 2. A sample is broken, and stops, once a
    misclassified point lies within eps; ``loss`` of the result is the margin. A stochastic model is judged by
    one draw a query. The rest and the errors as in ``pgd``.

    >>> found = sg.fab(net, x, y, sg.Linf(8 / 255), steps=3, targets=2)
    >>> bool(((found.x - x).abs() <= 8 / 255 + 1e-6).all())
    True
    """
    batch = Batch.of(x, y, threat, index, seed)
    settings = _Settings(steps, restarts, TARGETS if targets is None else targets, gradient or Own())
    return _search(model, batch, settings, until_broken=True).best.result(batch)


@measures
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
    """The smallest norm of a misleading change that FAB-T finds, ``[N]``, in units of images in [0, 1].

    0 where the class is wrong at ``x``, inf where nothing was found. The norm is the threat's; its eps only
    sets how far random starts lie from ``x``. Arguments as in ``fab``.

    >>> from spikeguard.attacks.fab import minimal
    >>> bool((minimal(net, x, y, sg.L2(0.5), steps=3, targets=2) >= 0).all())
    True
    """
    batch = Batch.of(x, y, threat, index, seed)
    settings = _Settings(steps, restarts, TARGETS if targets is None else targets, gradient or Own())
    return _search(model, batch, settings, until_broken=False).norm
