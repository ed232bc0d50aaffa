"""Another model's gradient, by any estimator of it, evaluated on the model itself at every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from spikeguard.arguments import checked_fields
from spikeguard.gradients.base import Estimator, Gradient, Opened, Own
from spikeguard.losses import Loss
from spikeguard.models import Model
from spikeguard.runtime.untouched import untouched


@dataclass(frozen=True, eq=False)
@checked_fields
class Transfer:
    """The gradient of another model, ``source``; loss and classes are the attacked model's own.

    ``inner``: the estimator opened on the source. Papernot et al., 2016 (transfer of adversarial examples).

    >>> source = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> transfer = sg.gradients.Transfer(source)
    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=2, restarts=1, gradient=transfer)
    >>> found.x.shape == x.shape
    True
    """

    source: Model
    inner: Estimator = field(default_factory=Own)

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        with untouched(self.source), self.inner.open(self.source) as inner:
            yield TransferOpened(model, inner=inner)


@dataclass
class TransferOpened(Opened):
    """Uses the gradient of ``inner``, which is opened on another model."""

    inner: Opened = field(default_factory=lambda: Opened(lambda x: x))

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> Gradient:
        return self.with_model_loss(self.inner(x, y, loss)[0], x, y, loss)

    def select(self, rows: Tensor) -> None:
        self.inner.select(rows)

    def freeze(self, frozen: bool) -> None:
        self.inner.freeze(frozen)
