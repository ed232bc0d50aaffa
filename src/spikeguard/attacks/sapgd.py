"""SA-PGD: steps scaled per pixel by running moments of the gradient, step size halved at checkpoints. arXiv
2512.22522.

    m <- 0.5 m + g / mean|g|,   v <- 0.8 v + g^2 / mean(g^2),   x <- P(x + clip(eta m / sqrt(v), -eta, eta))

Without its 0.5 and 0.8 at the first step; eta starts at eps and is halved after 0.22 n steps, then at gaps
that shrink by 0.03 n down to 0.06 n. Meant for the estimator ``ASSG``. The rule is made for Linf: under L1,
l1-APGD's steps along the same gradient find far more and replace it (``sparse``).
"""

from __future__ import annotations

from torch import Tensor

from spikeguard.attacks.apgd import checkpoints
from spikeguard.attacks.batch import Batch, PerSample, check_counts
from spikeguard.attacks.loop import Ascent, Attacked, search_from_border
from spikeguard.attacks.sparse import unless_l1
from spikeguard.border import measures
from spikeguard.gradients import ASSG, Estimator
from spikeguard.losses import Loss, objective
from spikeguard.models import Model
from spikeguard.threat import Threat


class AdaptiveStep(PerSample):
    """The rule above; a sample without any gradient stays where it is."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.threat, self.halve_at = batch.threat, checkpoints(steps)
        self.eta = batch.threat.per_sample(batch.x)
        self.m: Tensor | None = None
        self.v: Tensor | None = None

    def step(self, k: int, x: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        """The next point."""
        if k in self.halve_at:
            self.eta = self.eta / 2
        size = gradient.abs().flatten(1).mean(1).clamp(min=1e-30).view_as(self.eta)
        scaled = gradient / size
        square = scaled**2
        square = square / square.flatten(1).mean(1).clamp(min=1e-30).view_as(self.eta)
        self.m = scaled if self.m is None else 0.5 * self.m + scaled
        self.v = square if self.v is None else 0.8 * self.v + square
        return x + self.threat.clipped_step(self.m / (self.v.sqrt() + 1e-12), self.eta)


sapgd_rule = unless_l1(AdaptiveStep)


@measures
def sapgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 100,
    restarts: int = 1,
    first: Tensor | None = None,
    loss: str | Loss = "ce",
    gradient: Estimator | None = None,
    seed: int = 0,
    index: Tensor | None = None,
) -> Attacked:
    """SA-PGD: steps scaled per pixel by running moments of the gradient. arXiv 2512.22522.

    ``x``: floats ``[N, C, H, W]`` in [0, 1]; ``y``: int64 ``[N]``. ``gradient`` None is ``gradients.ASSG()``.
    Each restart begins at a random point on the border of the ball, the first one at the points ``first`` if
    given. The rest and the errors as in ``pgd``.

    >>> found = sg.sapgd(net, x, y, sg.Linf(8 / 255), steps=5)
    >>> found.x.shape == x.shape
    True
    """
    batch = Batch.of(x, y, threat, index, seed)
    check_counts("sapgd", steps=steps, restarts=restarts)
    ascent = Ascent(gradient or ASSG(), objective(loss), steps, restarts)
    return search_from_border("sapgd", model, batch, ascent, sapgd_rule, first)
