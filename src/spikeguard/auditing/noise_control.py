"""A control: gradients must break more images than random points."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from spikeguard import attacks
from spikeguard.auditing import panel
from spikeguard.auditing.panel import FEW_PIXELS, broken_by, right_at, subset
from spikeguard.auditing.task import Task
from spikeguard.records.schema import NoiseRow, Settings
from spikeguard.stats import ALPHA, mcnemar

LEAST_FACTOR = 4.0
"""Of the budget, at which gradients are compared with noise at least."""


def against_noise(task: Task) -> tuple[NoiseRow, ...]:
    """From twice the budget on gradients must break more images than as many random points.

    The budget is doubled until they clearly do, or until noise leaves too few images, or every image is
    allowed: where nothing breaks, neither attack says anything. No rows where no outcome is significant, for
    few images are right, or where random points search a ball as well as gradients (``FEW_PIXELS``).
    """
    rows: list[NoiseRow] = []
    budgeted = torch.nonzero(task.threat.per_sample(task.x).flatten() > 0).flatten()
    if not len(budgeted) or task.x[0].numel() < FEW_PIXELS:
        return ()
    task = subset(task, budgeted)
    right, least = right_at(task, task.x), float(task.threat.per_sample(task.x).min())
    if mcnemar(int(right.sum()), 0) >= ALPHA:
        return ()
    pixels, factor, done = task.x[0].numel(), 1.0, False
    whole = {"linf": 1.0, "l2": pixels**0.5, "l1": float(pixels)}[task.threat.norm]
    while not done:
        factor *= 2
        rows.append(_against_noise(task, right, factor))
        last, wide = rows[-1], factor >= LEAST_FACTOR
        done = beats_noise(last) or (wide and (noise_saturates(last) or factor * least >= whole))
    return tuple(rows)


def _against_noise(task: Task, right: Tensor, factor: float) -> NoiseRow:
    """Random points against gradients at ``factor`` times the budget; the first estimator that clearly wins
    is enough, and where the first breaks nothing, and noise neither, others are not tried."""
    threat = task.threat.scaled(factor)
    by_noise, by_gradient = torch.zeros_like(right), torch.zeros_like(right)
    row = NoiseRow(int(right.sum()), 0, 0, 1.0, False, factor)
    for number, (estimator, loss) in enumerate(product(panel.LADDER, ("ce", "margin"))):
        noise: Settings = {"tries": 20, "seed": number}
        by_noise = by_noise | right & broken_by(task, threat, attacks.random_noise, noise)
        settings: Settings = {"steps": 20, "restarts": 1, "loss": loss}
        by_gradient = by_gradient | right & broken_by(task, threat, attacks.pgd, settings, estimator)
        only = (int((by_gradient & ~by_noise).sum()), int((by_noise & ~by_gradient).sum()))
        counts = (int(right.sum()), int(by_noise.sum()), int(by_gradient.sum()))
        row = NoiseRow(*counts, mcnemar(*only), only[0] > only[1], factor)
        if beats_noise(row) or not (row.noise or row.gradient):
            break
    return row


def beats_noise(row: NoiseRow) -> bool:
    """Whether gradients clearly broke more images than random points."""
    return row.p < ALPHA and row.better


def noise_saturates(row: NoiseRow) -> bool:
    """Whether random points leave too few images for anything to be better."""
    left = row.right - row.noise
    return left <= 0.2 * row.right or mcnemar(left, 0) >= ALPHA
