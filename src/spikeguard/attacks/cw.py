"""Carlini and Wagner's L2 attack: the smallest change that misleads, by Adam behind a tanh. IEEE S&P 2017.

    minimize |x' - x|^2 + c max(z_y - max_{j != y} z_j, 0)  over w,   x' = (tanh w + 1) / 2

c is searched for each sample: ten times as much as long as nothing misleads, from then on by halving the
bracket.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spikeguard.attacks.batch import Batch, PerSample, check_counts, over_pixels
from spikeguard.attacks.loop import Attacked
from spikeguard.attacks.nearest import Nearest
from spikeguard.border import measures
from spikeguard.errors import UserError
from spikeguard.gradients import Estimator, Own
from spikeguard.losses import margin
from spikeguard.models import Model, eval_mode
from spikeguard.threat import L2, Threat
from spikeguard.wrapping.contact import steady_answers

FIRST_C, GROWTH, LAST_C = 0.01, 10.0, 1e10
INSIDE = 1 - 1e-6  # tanh reaches no pixel of 0 or 1
DECAYS = (0.9, 0.999)


def negative_margin(logits: Tensor, y: Tensor) -> Tensor:
    """The margin where it is negative, else 0, ``[N]``: minus the paper's f with kappa 0."""
    return margin(logits, y).clamp(max=0.0)


@dataclass(frozen=True)
class _Settings:
    steps: int
    searches: int
    learning_rate: float
    estimator: Estimator


class _Adam(PerSample):
    """Adam on ``w`` of some samples."""

    def __init__(self, w: Tensor) -> None:
        self.w, self.first, self.second = w, torch.zeros_like(w), torch.zeros_like(w)

    def step(self, k: int, slope: Tensor, learning_rate: float) -> None:
        self.first = DECAYS[0] * self.first + (1 - DECAYS[0]) * slope
        self.second = DECAYS[1] * self.second + (1 - DECAYS[1]) * slope**2
        spread = (self.second / (1 - DECAYS[1] ** (k + 1))).sqrt() + 1e-8
        self.w = self.w - learning_rate * (self.first / (1 - DECAYS[0] ** (k + 1)) / spread)


def _descend(nearest: Nearest, c: Tensor, settings: _Settings) -> Tensor:
    """One run of Adam with ``c`` ``[N]``; which samples it misled, at whatever distance, ``[N]``."""
    misled = torch.zeros_like(nearest.best.broken)
    rows = nearest.active()
    batch = nearest.batch.select(rows)
    adam = _Adam(torch.atanh((2 * batch.x - 1) * INSIDE))
    with settings.estimator.open(nearest.model) as opened:
        for k in range(settings.steps):
            if not len(rows):
                break
            here = (torch.tanh(adam.w) + 1) / 2
            gradient, _, logits = opened(here, batch.y, negative_margin)
            wrong, done = nearest.note(rows, batch, here, logits, k + 1)
            misled[rows] |= wrong
            weight = over_pixels(c[rows], here)
            adam.step(
                k, (2 * (here - batch.x) - weight * gradient) * 2 * here * (1 - here), settings.learning_rate
            )
            if bool(done.any()):
                stand = torch.nonzero(~done).flatten()
                rows, batch = rows[stand], batch.select(stand)
                adam.select(stand)
                opened.select(stand)
        nearest.best.count(opened)
    return misled


def _search(model: Model, batch: Batch, settings: _Settings, until_broken: bool) -> Nearest:
    check_counts("cw", steps=settings.steps, searches=settings.searches)
    if not settings.learning_rate > 0:
        raise UserError(f"cw: learning_rate = {settings.learning_rate} must be above 0")
    with eval_mode(model):
        steady_answers(model, batch.x, batch.y)
        nearest = Nearest(model, batch, until_broken)
        c = torch.full_like(nearest.norm, FIRST_C)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for _ in range(settings.searches):
            misled = _descend(nearest, c, settings)
            low, high = torch.where(misled, low, c), torch.where(misled, c, high)
            c = torch.where(high.isinf(), (GROWTH * c).clamp(max=LAST_C), (low + high) / 2)
    return nearest


@measures
def cw(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 100,
    searches: int = 9,
    learning_rate: float = 0.01,
    gradient: Estimator | None = None,
    seed: int = 0,
    index: Tensor | None = None,
) -> Attacked:
    """C&W: the smallest L2 change that misleads, by Adam. Carlini and Wagner, IEEE S&P 2017.

    ``x``: floats ``[N, C, H, W]`` in [0, 1]; ``y``: int64 ``[N]``. ``searches``: values of c tried per
    sample, ``steps`` of Adam each. A sample is broken, and stops, once a misclassified point lies within eps;
    ``loss`` of the result is the margin. The attack draws nothing: ``seed`` and ``index`` exist so that all
    attacks are called the same way. A stochastic model is judged by one draw a query. UserError under another
    norm than L2; other errors as in ``pgd``.

    >>> found = sg.cw(net, x, y, sg.L2(1.0), steps=5, searches=2, learning_rate=0.1)
    >>> bool((sg.L2(1.0).length(found.x - x) <= 1.0 + 1e-5).all())
    True
    """
    batch = Batch.of(x, y, threat, index, seed)
    if not isinstance(threat, L2):
        raise UserError(f"cw is an attack under L2, not under {type(threat).__name__}")
    settings = _Settings(steps, searches, learning_rate, gradient or Own())
    return _search(model, batch, settings, until_broken=True).best.result(batch)


@measures
def cw_minimal(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 100,
    searches: int = 9,
    learning_rate: float = 0.01,
    gradient: Estimator | None = None,
) -> Tensor:
    """The smallest L2 norm of a misleading change that C&W finds, ``[N]``, in units of images in [0, 1].

    0 where the class is wrong at ``x``, inf where nothing was found. Arguments as in ``cw``.

    >>> from spikeguard.attacks.cw import cw_minimal
    >>> bool((cw_minimal(net, x, y, steps=5, searches=2) >= 0).all())
    True
    """
    settings = _Settings(steps, searches, learning_rate, gradient or Own())
    return _search(model, Batch.of(x, y, L2(0.0)), settings, until_broken=False).norm
