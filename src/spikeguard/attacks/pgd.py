"""Attacks that step along the gradient, under Linf along its sign: FGSM, R-FGSM, BIM, PGD, MI-FGSM."""

from __future__ import annotations

import torch
from torch import Tensor

from spikeguard.attacks.batch import Batch, PerSample, check_counts, random_start
from spikeguard.attacks.loop import Ascent, Attacked, Rule, begin_at, search
from spikeguard.border import measures
from spikeguard.errors import UserError
from spikeguard.gradients import Estimator, Own
from spikeguard.losses import Loss, objective
from spikeguard.models import Model
from spikeguard.random import draws
from spikeguard.threat import Linf, Threat


class SignStep(PerSample):
    """A step of ``size`` ``[N, 1, ...]`` along the gradient, of the pixels that can move.

    A pixel at the end of [0, 1] would take up the step, under L1 all of it (Croce and Hein, ICML 2021). With
    ``momentum``, along ``m <- momentum m + g / mean|g|``.
    """

    def __init__(self, threat: Threat, size: Tensor, momentum: float = 0.0) -> None:
        self.threat, self.size, self.momentum = threat, size, momentum
        self.m: Tensor | None = None

    def step(self, k: int, x: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        """The next point."""
        if self.momentum:
            scaled = gradient / (gradient.abs().flatten(1).mean(1).view_as(self.size) + 1e-12)
            gradient = self.m = scaled if self.m is None else self.momentum * self.m + scaled
        stuck = ((x <= 0) & (gradient < 0)) | ((x >= 1) & (gradient > 0))
        return x + self.threat.steepest(gradient.masked_fill(stuck, 0.0), self.size)


def default_step(eps: Tensor, steps: int, step_size: float | None) -> Tensor:
    """The step size per sample: ``step_size`` if given, else ``max(2.5 eps / steps, eps / 16)``."""
    return (
        torch.maximum(2.5 * eps / steps, eps / 16) if step_size is None else torch.full_like(eps, step_size)
    )


@measures
def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 5,
    start: bool = True,
    first: Tensor | None = None,
    momentum: float = 0.0,
    loss: str | Loss = "ce",
    gradient: Estimator | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    early_stop: bool = True,
) -> Attacked:
    """Projected gradient ascent. Madry et al., ICLR 2018.

    ``model``: images ``[N, C, H, W]`` to logits ``[N, K]``. ``x``: floats in [0, 1]; ``y``: int64 ``[N]``.
    ``step_size`` None is ``max(2.5 eps / steps, eps / 16)``, in units of images in [0, 1]. ``start``: begin
    each restart at a random point (``random_start``), else once at ``x``; ``first``: begin the first restart
    at these points, inside the budget. ``momentum`` 1 is MI-FGSM (Dong et al., CVPR 2018). ``loss``: 'ce',
    'margin', 'dlr' or a
    function of logits and labels. ``gradient``: an estimator, None is the model's own. ``index``: the
    samples' numbers ``[N]``, on which random starts depend. ``early_stop`` False takes all steps with all
    samples and judges only the last points; so does a stochastic model. Raises AttackError if no gradient
    reaches the input, UserError on bad arguments.

    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=5, restarts=1)
    >>> found.x.shape == x.shape, bool(((found.x - x).abs() <= 8 / 255 + 1e-6).all())
    (True, True)
    """
    batch = Batch.of(x, y, threat, index, seed)
    check_counts("pgd", steps=steps, restarts=restarts)
    for name, value in (("step_size", step_size), ("momentum", momentum)):
        if value is not None and not value >= 0:
            raise UserError(f"pgd: {name} = {value} must be 0 or more")
    size = default_step(threat.per_sample(batch.x), steps, step_size)

    def begin(restart: int) -> tuple[Tensor, Rule]:
        rule = SignStep(threat, size, momentum)
        if first is not None and not restart:
            return batch.project(first), rule
        return (random_start(batch, restart) if start else batch.x), rule

    ascent = Ascent(gradient or Own(), objective(loss), steps, restarts if start else 1, early_stop)
    return search(model, batch, ascent, begin)


@measures
def bim(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 10,
    step_size: float | None = None,
    loss: str | Loss = "ce",
    gradient: Estimator | None = None,
    early_stop: bool = True,
) -> Attacked:
    """PGD without a random start. Kurakin et al., ICLR 2017 workshop.

    Arguments and errors as in ``pgd``.

    >>> found = sg.bim(net, x, y, sg.Linf(8 / 255), steps=3)
    >>> found.broken.shape
    torch.Size([6])
    """
    return pgd(
        model,
        x,
        y,
        threat,
        steps=steps,
        step_size=step_size,
        start=False,
        loss=loss,
        gradient=gradient,
        early_stop=early_stop,
    )


@measures
def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    loss: str | Loss = "ce",
    gradient: Estimator | None = None,
) -> Attacked:
    """One step of length eps, under Linf along the sign of the gradient. Goodfellow et al., ICLR 2015.

    Samples that are misclassified at ``x`` are broken there. Arguments and errors as in ``pgd``.

    >>> found = sg.fgsm(net, x, y, sg.Linf(8 / 255))
    >>> int(found.broken.sum()) >= int((net(x).argmax(1) != y).sum())
    True
    """
    batch = Batch.of(x, y, threat)
    size = threat.per_sample(batch.x)
    ascent = Ascent(gradient or Own(), objective(loss), steps=1)
    return search(model, batch, ascent, begin_at(batch.x, SignStep(threat, size)))


@measures
def rfgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    loss: str | Loss = "ce",
    gradient: Estimator | None = None,
    seed: int = 0,
    index: Tensor | None = None,
) -> Attacked:
    """A random sign step of eps / 2, then a gradient step of eps / 2, as papers on robust SNNs use it.

    Only for comparison with their tables: it is weaker than ``fgsm``. Linf only, UserError under other norms.
    Arguments as in ``pgd``. The original is by Tramer et al., ICLR 2018.

    >>> found = sg.rfgsm(net, x, y, sg.Linf(8 / 255))
    >>> bool(((found.x - x).abs() <= 8 / 255 + 1e-6).all())
    True
    """
    batch = Batch.of(x, y, threat, index, seed)
    if not isinstance(threat, Linf):
        raise UserError(f"rfgsm is an attack under Linf, not under {type(threat).__name__}")
    x, half = batch.x, threat.per_sample(batch.x) / 2
    sign = (batch.uniform(draws.key(seed, "rfgsm"), x[0].numel()) - 0.5).sign().view_as(x)
    start = (x + half * sign.to(x.dtype)).clamp(0.0, 1.0)
    ascent = Ascent(gradient or Own(), objective(loss), steps=1)
    return search(model, batch, ascent, begin_at(start, SignStep(threat, half)))
