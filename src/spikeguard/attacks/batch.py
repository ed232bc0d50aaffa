"""What an attack works on, sample by sample: clean images, labels, budget, sample numbers, and random starts.

``select(rows)`` is the one way to go on with some of the samples. What describes samples (``Batch``,
``Threat``, losses) is immutable and returns a smaller copy; what changes from step to step (``PerSample``:
step rules and opened estimators) shrinks in place.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeguard.errors import SpikeguardWarning, UserError
from spikeguard.random import draws
from spikeguard.threat import Threat

FAR = 2.01
"""So many times the budget that allows every image are a mistake; controls use up to twice that budget."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Clean images ``x`` ``[N, ...]`` in [0, 1], labels ``y`` ``[N]``, the threat, and what draws depend on.

    ``ids``: the samples' numbers, int64 ``[N]`` on the device of ``x``. With ``seed`` they are the key of
    every draw, so that a result does not depend on the batch that a sample is part of.
    """

    x: Tensor
    y: Tensor
    threat: Threat
    ids: Tensor
    seed: int = 0

    @classmethod
    def of(cls, x: Tensor, y: Tensor, threat: Threat, index: Tensor | None = None, seed: int = 0) -> Batch:
        """The arguments of a public attack, as ``border`` received them.

        ``index`` None numbers the samples from 0. A budget far beyond every image is worth a warning.
        """
        whole = float(threat.length(torch.ones_like(x[:1])))
        if threat.extremes[0] > FAR * whole:
            warnings.warn(
                f"eps of {type(threat).__name__} allows every image of shape {tuple(x.shape[1:])} from "
                f"{whole:.3g} on; it is in units of images in [0, 1] (bytes: divide by 255)",
                SpikeguardWarning,
                stacklevel=4,
            )
        return cls(x, y, threat, torch.arange(len(x), device=x.device) if index is None else index, seed)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Batch(x {list(self.x.shape)}, {self.threat!r}, seed {self.seed})"

    @property
    def eps(self) -> Tensor:
        """The budget per sample, ``[N]``."""
        return self.threat.per_sample(self.x).flatten()

    def select(self, rows: Tensor) -> Batch:
        """The same for these samples only."""
        return Batch(self.x[rows], self.y[rows], self.threat.select(rows), self.ids[rows], self.seed)

    def project(self, candidate: Tensor) -> Tensor:
        """The nearest points inside the budget and inside [0, 1]."""
        return self.threat.project(candidate, self.x)

    def uniform(self, key: int, count: int) -> Tensor:
        """Uniform draws in (0, 1), float32 ``[N, count]``: a function of the key and the samples' numbers."""
        return draws.uniform(key, self.ids, count)


class PerSample:
    """State with one entry a sample.

    ``select`` keeps the entries of some samples, in place: attributes that are tensors ``[N, ...]``, batches,
    threats or states themselves. Attributes of other types are settings and stay.
    """

    def select(self, rows: Tensor) -> None:
        """Keep these samples only."""
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])
            elif isinstance(value, (Batch, Threat)):
                setattr(self, name, value.select(rows))
            elif isinstance(value, PerSample):
                value.select(rows)


class HighestPoint(PerSample):
    """Each sample's point ``x`` of highest ``loss`` so far, with the ``gradient`` there."""

    def __init__(self, x: Tensor, gradient: Tensor, loss: Tensor) -> None:
        self.x, self.gradient, self.loss = x, gradient, loss

    def update(self, x: Tensor, gradient: Tensor, loss: Tensor) -> None:
        """Take over points of higher loss."""
        better = over_pixels(loss > self.loss, x)
        self.x = torch.where(better, x, self.x)
        self.gradient = torch.where(better, gradient, self.gradient)
        self.loss = torch.maximum(loss, self.loss)


def over_pixels(values: Tensor, x: Tensor) -> Tensor:
    """Values per sample ``[N]`` as ``[N, 1, ...]``, to combine with images like ``x``."""
    return values.view(-1, *[1] * (x.dim() - 1))


def random_start(batch: Batch, restart: int) -> Tensor:
    """A random start: uniform in the ball under Linf; under L2 and L1 uniform noise scaled to the ball's
    border.

    Then clipped to [0, 1]. A function of the seed, the restart and the samples' numbers.
    """
    x, threat, seed = batch.x, batch.threat, batch.seed
    noise = batch.uniform(draws.key(seed, "start", restart), x[0].numel()).view_as(x).to(x.dtype)
    return batch.project(x + threat.random_offset(2 * noise - 1, x))


def border_start(batch: Batch, key: int) -> Tensor:
    """A random start on the ball's border in every norm: uniform noise scaled until it is eps long.

    Then clipped to [0, 1]. A function of the key and the samples' numbers.
    """
    x, threat = batch.x, batch.threat
    noise = 2 * batch.uniform(key, x[0].numel()).view_as(x).to(x.dtype) - 1
    return batch.project(x + threat.to_border(noise, x))


def check_counts(attack: str, **counts: int) -> None:
    """UserError in the name of the attack unless every count is at least 1."""
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{attack}: {name} = {count} must be at least 1")
