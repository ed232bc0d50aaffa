"""Where an attack gets the gradient of its loss with respect to the input: the model's own backward pass,
another surrogate, an average.

An estimator is opened on a model once a restart. What it opens gives gradients, may keep state per sample,
and counts its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from spikeguard.arguments import checked_fields, error_line
from spikeguard.errors import AttackError, UserError
from spikeguard.gradients.reentrant import leaves_kept, needs_backward
from spikeguard.losses import Loss
from spikeguard.models import Model, logits_of

Gradient = tuple[Tensor, Tensor, Tensor]
"""Gradient like the images, loss ``[N]``, logits ``[N, K]``."""


def derive(
    model: Model, x: Tensor, y: Tensor, loss: Loss, before_backward: Callable[[Tensor], None] | None = None
) -> Gradient:
    """Gradient of the summed loss with respect to ``x``, loss ``[N]`` and logits ``[N, K]``.

    ``before_backward`` gets the summed loss before the backward pass. AttackError if no gradient reaches
    ``x`` or if it is not finite.
    """
    x = x.detach().requires_grad_()

    def forward() -> tuple[Tensor, Tensor, Tensor]:
        logits = logits_of(model, x)
        value = loss(logits, y)
        if not value.requires_grad:
            raise AttackError(
                "no gradient reaches the input: the model detaches it or computes without autograd"
            )
        total = value.sum()
        if before_backward:
            before_backward(total)
        return logits, value, total

    with torch.enable_grad():
        logits, value, total = forward()
        try:
            gradient: Tensor | None = torch.autograd.grad(total, x, allow_unused=True)[0]
        except Exception as error:  # the model's own backward pass may raise anything
            if not needs_backward(error):
                raise UserError(f"the model's backward pass fails ({error_line(error)})") from error
            with leaves_kept(model) as watch:
                with watch:
                    logits, value, total = forward()
                total.backward()
                gradient = x.grad
    if gradient is None:
        raise AttackError("no gradient reaches the input: the logits do not depend on it in autograd")
    value, broken = value.detach(), value.detach().isnan()
    if bool(broken.any()):  # no numbers at these points: the attack is over there
        gradient = torch.where(broken.view(-1, *[1] * (x.dim() - 1)), 0.0, gradient)
    if not bool(torch.isfinite(gradient).all()):
        raise AttackError("the input gradient is not finite")
    return gradient, value, logits.detach()


@dataclass
class Opened:
    """An estimator at work on one model: ``opened(x, y, loss) -> (gradient, loss [N], logits [N, K])``.

    ``forwards`` and ``backwards`` count samples.
    """

    model: Model
    forwards: int = 0
    backwards: int = 0

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> Gradient:
        self.forwards += len(x)
        self.backwards += len(x)
        return derive(self.model, x, y, loss)

    def with_model_loss(self, gradient: Tensor, x: Tensor, y: Tensor, loss: Loss) -> Gradient:
        """A gradient that another pass gave, with loss and logits of the model itself.

        Both passes are counted.
        """
        self.forwards += len(x)
        self.backwards += len(x)
        logits = self.logits(x)
        return gradient, loss(logits, y), logits

    def logits(self, x: Tensor) -> Tensor:
        """Logits ``[N, K]`` without a gradient."""
        with torch.no_grad():
            self.forwards += len(x)
            return logits_of(self.model, x)

    def select(self, rows: Tensor) -> None:
        """Keep the state of these samples only."""

    def freeze(self, frozen: bool) -> None:
        """Keep the state, if there is any, as it is while frozen."""


class Estimator(Protocol):
    """A way to get input gradients; immutable settings.

    >>> from spikeguard.losses import ce
    >>> with sg.gradients.Own().open(net) as opened:
    ...     gradient, loss, logits = opened(x, y, ce)
    >>> gradient.shape, loss.shape, logits.shape
    (torch.Size([6, 1, 8, 8]), torch.Size([6]), torch.Size([6, 10]))
    """

    def open(self, model: Model) -> AbstractContextManager[Opened]:
        """A context that gives an ``Opened``."""


@dataclass(frozen=True)
class Own:
    """The model's own backward pass.

    >>> from spikeguard.losses import ce
    >>> with sg.gradients.Own().open(net) as opened:
    ...     gradient, loss, logits = opened(x, y, ce)
    >>> gradient.shape == x.shape, loss.shape, logits.shape
    (True, torch.Size([6]), torch.Size([6, 10]))
    """

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        yield Opened(model)


@dataclass
class EOTOpened(Opened):
    """Averages over ``draws`` calls of ``inner``, whose state advances by one call only."""

    inner: Opened = field(default_factory=lambda: Opened(lambda x: x))
    draws: int = 1

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> Gradient:
        total = [t.clone() for t in self.inner(x, y, loss)]
        self.inner.freeze(True)
        for _ in range(self.draws - 1):
            for sum_, one in zip(total, self.inner(x, y, loss), strict=True):
                sum_ += one
        self.inner.freeze(False)
        self.forwards += self.draws * len(x)
        self.backwards += self.draws * len(x)
        gradient, value, logits = (t / self.draws for t in total)
        return gradient, value, logits

    def select(self, rows: Tensor) -> None:
        self.inner.select(rows)


@dataclass(frozen=True)
@checked_fields
class EOT:
    """Expectation over transformation: the mean gradient over ``draws`` of a stochastic model's noise.

    ``inner``: the estimator that gives each gradient. Costs ``draws`` forward and backward passes. UserError
    if ``draws`` is below 1. Athalye et al., ICML 2018.

    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=2, restarts=1, gradient=sg.gradients.EOT(3))
    >>> found.x.shape == x.shape
    True
    """

    draws: int
    inner: Estimator = field(default_factory=Own)

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise UserError(f"EOT: draws = {self.draws} must be at least 1")

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        with self.inner.open(model) as inner:
            yield EOTOpened(model, inner=inner, draws=self.draws)


def as_module(model: Model, who: str) -> nn.Module:
    """The model as a module, for estimators that change its neurons; UserError in the name of ``who``."""
    if not isinstance(model, nn.Module):
        raise UserError(f"{who}: needs a torch module with neurons it knows, got {type(model).__name__}")
    return model
