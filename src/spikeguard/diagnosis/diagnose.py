"""``sg.diagnose``: why a network is fragile, layer by layer, in one record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from spikeguard.adapters.registry import layers
from spikeguard.attacks import pgd
from spikeguard.auditing.record import budget, digests
from spikeguard.border import measures
from spikeguard.diagnosis.energy import energy
from spikeguard.diagnosis.holding import held_rows
from spikeguard.diagnosis.layers import layer_rows
from spikeguard.diagnosis.rank import auc
from spikeguard.diagnosis.readings import Reading, read
from spikeguard.diagnosis.sensitivity import gradients, sampled
from spikeguard.errors import UserError
from spikeguard.gradients import ASSG
from spikeguard.losses import margin
from spikeguard.models import Model, eval_mode
from spikeguard.records.diagnosis import DiagnosisRecord, Predictor
from spikeguard.records.schema import Origin
from spikeguard.runtime.float32 import exact
from spikeguard.runtime.machine import machine
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.runtime.untouched import leaves_untouched
from spikeguard.threat import Threat

STEPS = 60
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Shares of spikes that are held in the causal test."""
DRAWS = 10
"""Random points of the ball for each image."""


@dataclass(frozen=True)
class Diagnosis:
    """Result of a diagnosis: its record.

    >>> result = sg.diagnose(net, x, y, sg.Linf(8 / 255))
    >>> 0 <= result.record.attacked.value <= result.record.clean.value <= 1
    True
    """

    record: DiagnosisRecord

    def __repr__(self) -> str:
        r = self.record
        return (
            f"Diagnosis({len(r.layers)} layers, {r.images} images: clean {100 * r.clean.value:.1f} %, "
            f"attacked {100 * r.attacked.value:.1f} %)"
        )

    def save(self, path: str | Path) -> Path:
        """Write the record; returns the path."""
        self.record.write(Path(path))
        return Path(path)


@measures
@leaves_untouched
@exact()
def diagnose(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    deltas: Sequence[float] = (0.1, 0.2, 0.5),
    sigma: float = 0.1,
    seed: int = 0,
    batch_size: int = 50,
    progress: Progress | None = None,
    origin: Origin | None = None,
) -> Diagnosis:
    """Measure why ``model`` is fragile: where potentials lie, which spikes flip, and whether that breaks it.

    Args:
        model: a network with neurons that ``sg.tap`` knows, in eval mode; images ``[N, C, H, W]`` in [0, 1]
            to logits ``[N, K]``.
        x: images, a hundred or so: all of their potentials are held in memory; y: labels ``[N]``; threat:
            the norm and its budget.
        deltas: distances to the threshold that count as near, in units of the potential.
        sigma: standard deviation of the noise in the comparator that flips are counted under.
        progress: called as ``progress(stage, done, total)``; origin: where model and images come from.

    Raises:
        UserError: bad input, a model without known neurons, or one whose layers run more than once a pass.

    The attack is PGD with ASSG on the margin, which does not end where an image breaks. The causal test holds
    spikes of attacked images at their values on the clean image. Threshold-neighboring neurons: "Robust
    Spiking Neural Networks Against Adversarial Attacks", ICLR 2026.

    >>> result = sg.diagnose(net, x, y, sg.Linf(8 / 255), sigma=0.1)
    >>> all(row.noise.agrees for row in result.record.layers.values())
    True
    """
    net = _checked(model, deltas, sigma, batch_size)
    progress = progress or no_progress
    stages = iter(range(7))

    def stage(name: str) -> None:
        progress(name, next(stages), 7)

    with eval_mode(net):
        stage("reading potentials")
        clean = read(net, x, batch_size)
        stage("attacking")
        found = _attacked(net, x, y, threat, batch_size, seed)
        moved = read(net, found, batch_size)
        stage("drawing noise")
        noisy = read(net, x, batch_size, noise=sigma, seed=seed)
        stage("gradients")
        slopes = gradients(net, x, y, batch_size)
        stage("random points of the ball")
        points, change = sampled(net, clean, x, y, threat, draws=DRAWS, batch_size=batch_size, seed=seed)
        stage("holding spikes")
        held = held_rows(net, found, y, clean, SHARES, batch_size, seed)
        stage("counting operations")
        spent = energy(net, x, batch_size)
    scores = {
        "share of potentials near the threshold": _near_share(clean, min(deltas)),
        "margin without attack": margin(clean.logits, y),
        "l1 norm of the input gradient": slopes.l1,
        "change of the margin at random points": change,
    }
    record = DiagnosisRecord(
        threat=budget(threat),
        attack="PGD",
        settings={"steps": STEPS, "gradient": "ASSG", "loss": "margin", "early_stop": False},
        seed=seed,
        images=len(x),
        sigma=sigma,
        clean=clean.accuracy(y),
        attacked=moved.accuracy(y),
        layers=layer_rows(clean, moved, noisy, deltas, sigma, seed, slopes.layers),
        held=held,
        predictors=_predictors(scores, clean.right(y), moved.right(y)),
        input_gradient=slopes.pixels,
        sampled=points,
        energy=spent,
        machine=machine(),
        origin=origin or Origin(),
        digests=digests(net, x, y),
    )
    return Diagnosis(record)


def _checked(model: Model, deltas: Sequence[float], sigma: float, batch_size: int) -> nn.Module:
    """The network; UserError if it or a setting cannot be diagnosed."""
    if not deltas or min(deltas) <= 0:
        raise UserError(f"diagnose: deltas = {tuple(deltas)} must be numbers above 0")
    if not sigma > 0:
        raise UserError(f"diagnose: sigma = {sigma} must be above 0")
    if batch_size < 1:
        raise UserError(f"diagnose: batch_size = {batch_size} must be 1 or more")
    if not isinstance(model, nn.Module) or not layers(model):
        raise UserError(
            f"diagnose: {type(model).__name__} has no neurons that sg.tap knows: nothing can be read"
        )
    return model


def _attacked(net: nn.Module, x: Tensor, y: Tensor, threat: Threat, batch_size: int, seed: int) -> Tensor:
    """Attacked images. Every image takes every step: one that is left just behind the border would come back
    whatever is held."""
    found = []
    for rows in torch.arange(len(x), device=x.device).split(batch_size):
        result = pgd(
            *(net, x[rows], y[rows], threat.select(rows)),
            steps=STEPS,
            restarts=1,
            loss="margin",
            gradient=ASSG(),
            seed=seed,
            index=rows,
            early_stop=False,
        )
        found.append(result.x)
    return torch.cat(found)


def _near_share(reading: Reading, delta: float) -> Tensor:
    """Of each image, over all layers, steps and neurons ``[N]``."""
    near = sum((u.abs() < delta).double().sum((0, 2)) for u in reading.u.values())
    total: Tensor = torch.as_tensor(near)
    return total / sum(u.shape[0] * u.shape[2] for u in reading.u.values())


def _predictors(scores: dict[str, Tensor], right: Tensor, stays: Tensor) -> tuple[Predictor, ...]:
    """How well each score separates broken images from others, of those that are right without attack."""
    broken = ~stays[right]
    counts = int(broken.sum()), int((~broken).sum())
    return tuple(
        Predictor(name, auc(score[right].cpu(), broken.cpu()), *counts) for name, score in scores.items()
    )
