"""Carlini and Wagner's L2 attack: the smallest change that misleads, by Adam behind a tanh. IEEE S&P 2017.

    minimize |x' - x|^2 + c max(z_y - max_{j != y} z_j, 0)  over w,   x' = (tanh w + 1) / 2

c is searched for each sample: ten times as much as long as nothing misleads, from then on by halving the
bracket.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeguard.attacks._loop import Attacked, Best, sample_ids
from spikeguard.errors import UserError
from spikeguard.gradients import Estimator, Own
from spikeguard.losses import margin
from spikeguard.models import Model, check_logits, eval_mode
from spikeguard.threat import L2, Threat, check_images

FIRST_C, GROWTH, LAST_C = 0.01, 10.0, 1e10
INSIDE = 1 - 1e-6  # tanh reaches no pixel of 0 or 1
DECAYS = (0.9, 0.999)


def short_of(logits: Tensor, y: Tensor) -> Tensor:
    """The margin up to 0, ``[N]``: minus C&W's f with kappa 0."""
    return margin(logits, y).clamp(max=0.0)


class _Search:
    """Best points and smallest norms over all searches of one call."""

    def __init__(
        self, model: Model, x: Tensor, y: Tensor, eps: Tensor, estimator: Estimator, until_broken: bool
    ) -> None:
        self.model, self.x, self.y, self.eps, self.estimator, self.until_broken = (
            model,
            x,
            y,
            eps,
            estimator,
            until_broken,
        )
        with torch.no_grad():
            self.best = Best(x, y, model(x), margin)
        self.norm = torch.where(self.best.broken, 0.0, torch.inf).to(x.dtype)

    def standing(self) -> Tensor:
        return self.best.standing() if self.until_broken else torch.nonzero(self.norm).flatten()

    def descend(self, c: Tensor, steps: int, learning_rate: float) -> Tensor:
        """One run of Adam with ``c`` ``[N]``; which samples it misled, at whatever distance, ``[N]``."""
        misled = torch.zeros_like(self.best.broken)
        rows = self.standing()
        column = (-1, *[1] * (self.x.dim() - 1))
        w = torch.atanh((2 * self.x[rows] - 1) * INSIDE)
        first, second = torch.zeros_like(w), torch.zeros_like(w)
        with self.estimator.open(self.model) as opened:
            for k in range(steps if len(rows) else 0):
                clean, labels, here = self.x[rows], self.y[rows], (torch.tanh(w) + 1) / 2
                gradient, _, logits = opened(here, labels, short_of)
                wrong, length = logits.argmax(1) != labels, L2(0.0).length(here - clean)
                misled[rows] |= wrong
                self.norm[rows] = torch.where(wrong, torch.minimum(self.norm[rows], length), self.norm[rows])
                inside = length <= self.eps[rows]
                self.best.note(
                    rows[inside], here[inside], margin(logits, labels)[inside], wrong[inside], k + 1
                )
                slope = (2 * (here - clean) - c[rows].view(column) * gradient) * 2 * here * (1 - here)
                first = DECAYS[0] * first + (1 - DECAYS[0]) * slope
                second = DECAYS[1] * second + (1 - DECAYS[1]) * slope**2
                step = (
                    first / (1 - DECAYS[0] ** (k + 1)) / ((second / (1 - DECAYS[1] ** (k + 1))).sqrt() + 1e-8)
                )
                w = w - learning_rate * step
                if self.until_broken and bool((wrong & inside).any()):
                    stand = torch.nonzero(~(wrong & inside)).flatten()
                    rows, w, first, second = rows[stand], w[stand], first[stand], second[stand]
                    opened.select(stand)
                    if not len(rows):
                        break
            self.best.forwards += opened.forwards
            self.best.backwards += opened.backwards
        return misled


def _run(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    steps: int,
    searches: int,
    learning_rate: float,
    gradient: Estimator | None,
    until_broken: bool,
) -> _Search:
    check_images(x, y)
    if not isinstance(threat, L2):
        raise UserError(f"cw is an attack under L2, not under {type(threat).__name__}")
    if steps < 1 or searches < 1 or not learning_rate > 0:
        raise UserError(
            f"cw: steps = {steps} and searches = {searches} must be at least 1, learning_rate = "
            f"{learning_rate} above 0"
        )
    x = x.detach()
    with eval_mode(model):
        check_logits(model, x, y)
        search = _Search(model, x, y, threat.per_sample(x).flatten(), gradient or Own(), until_broken)
        c = torch.full_like(search.norm, FIRST_C)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for _ in range(searches):
            misled = search.descend(c, steps, learning_rate)
            low, high = torch.where(misled, low, c), torch.where(misled, c, high)
            c = torch.where(high.isinf(), (GROWTH * c).clamp(max=LAST_C), (low + high) / 2)
    return search


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
    """C&W on ``x`` ``[N, C, H, W]`` in [0, 1] under L2: ``searches`` values of c a sample, ``steps`` of Adam
    each.

    A sample is broken, and goes no further, once a misclassified point lies within eps; ``loss`` is the
    margin. It draws nothing: ``seed`` and ``index`` are there for a call like the others'. A random model is
    judged by one draw a query. UserError on bad images and another norm.
    """
    sample_ids(index, x)
    return _run(model, x, y, threat, steps, searches, learning_rate, gradient, until_broken=True).best.result(
        x.detach(), threat
    )


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
    """The smallest L2 norm of a misleading change that C&W finds, ``[N]``.

    0 where the class is wrong at x, inf where none was found.
    """
    return _run(model, x, y, L2(0.0), steps, searches, learning_rate, gradient, until_broken=False).norm
