"""What attacks share that minimize the change instead of raising a loss within a budget (FAB, C&W)."""

from __future__ import annotations

import torch
from torch import Tensor

from spikeguard.attacks.batch import Batch
from spikeguard.attacks.loop import Best
from spikeguard.losses import margin
from spikeguard.models import Model, logits_of


class Nearest:
    """Best points and smallest misleading changes over all runs of one call.

    ``norm``: ``[N]``, 0 where the class is wrong at the image, inf where nothing was found. ``until_broken``:
    a sample is done once a misclassified point lies within its budget, else only if it is wrong at the image.
    """

    def __init__(self, model: Model, batch: Batch, until_broken: bool) -> None:
        self.model, self.batch, self.until_broken = model, batch, until_broken
        with torch.no_grad():
            self.logits = logits_of(model, batch.x)
        self.best = Best(batch, self.logits, margin)
        self.norm = torch.where(self.best.broken, 0.0, torch.inf).to(batch.x.dtype)

    def active(self) -> Tensor:
        """The rows that take part in the next run."""
        return self.best.standing() if self.until_broken else torch.nonzero(self.norm).flatten()

    def note(
        self, rows: Tensor, batch: Batch, here: Tensor, logits: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """Take over points of the samples ``rows``, whose images are ``batch``.

        Returns which are misclassified and which of these leave the run, both ``[n]``.
        """
        wrong, length = logits.argmax(1) != batch.y, batch.threat.length(here - batch.x)
        self.norm[rows] = torch.where(wrong, torch.minimum(self.norm[rows], length), self.norm[rows])
        inside = length <= batch.eps
        value = margin(logits, batch.y)
        self.best.note(rows[inside], here[inside], value[inside], wrong[inside], step)
        return wrong, wrong & inside if self.until_broken else torch.zeros_like(wrong)
