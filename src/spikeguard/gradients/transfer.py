"""Another model's gradient, by any estimator of it, judged on the model itself at every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from spikeguard.gradients.base import Estimator, Opened, Own
from spikeguard.losses import Loss
from spikeguard.models import Model


@dataclass(frozen=True, eq=False)
class Transfer:
    """Another model's gradient, by any estimator of it: transfer, judged at every step."""

    source: Model
    inner: Estimator = field(default_factory=Own)

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        with self.inner.open(self.source) as inner:
            yield TransferOpened(model, inner=inner)


@dataclass
class TransferOpened(Opened):
    inner: Opened = field(default_factory=lambda: Opened(lambda x: x))

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        return self.judged(self.inner(x, y, loss)[0], x, y, loss)

    def select(self, rows: Tensor) -> None:
        self.inner.select(rows)

    def freeze(self, frozen: bool) -> None:
        self.inner.freeze(frozen)
