"""What is stored of a diagnosis: why a network is fragile, in numbers.

Shares and accuracies are fractions in [0, 1]. ``u`` is the membrane potential minus the threshold, in units
of the potential; a step, a neuron and an image give one value of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from spikeguard.records.base import Record
from spikeguard.records.schema import Accuracy, Budget, Digests, Origin, Settings
from spikeguard.runtime.machine import Machine

EDGES = tuple(round(-3 + 0.05 * k, 2) for k in range(121))
"""Borders of the bins of all histograms of ``u``."""


@dataclass(frozen=True)
class NearRow:
    """Shares of the potentials near the threshold: ``|u| < delta``, ``|u| < delta std(u)``, and
    ``|u| < delta`` times the mean shift of ``u`` under the attack."""

    delta: float
    absolute: float
    relative: float
    of_shift: float


@dataclass(frozen=True)
class StepRow:
    """One time step of a layer: mean and standard deviation of ``u``, share of neurons that fire, share with
    ``|u|`` below the smallest delta."""

    mean: float
    spread: float
    rate: float
    near: float


@dataclass(frozen=True)
class NoiseFlips:
    """Spikes that noise of standard deviation ``sigma`` in the comparator flips: by the closed form
    ``Phi(-|u|/sigma)``, and as sampled; ``error``: the standard error of the sampled share."""

    sigma: float
    closed: float
    sampled: float
    error: float

    @property
    def agrees(self) -> bool:
        """Do both lie within five standard errors?"""
        return abs(self.closed - self.sampled) <= 5 * self.error + 1e-9


@dataclass(frozen=True)
class AttackFlips:
    """Spikes that differ between an image and its attacked version.

    ``shift``: mean ``|u' - u|``. ``distance``, ``distance_others``: mean ``|u|`` of neurons that flip and of
    the others. ``auc``: chance that a neuron that flips lies nearer to the threshold than one that does not;
    ``auc_shuffled``: the same if the shifts are dealt out to other neurons of the layer, which is what
    nearness explains without any choice by the attack. ``common``, ``independent``: share flipped under noise
    of sigma, the same draw for both images or two.
    """

    flipped: float
    shift: float
    distance: float
    distance_others: float
    auc: float | None
    auc_shuffled: float | None
    common: float
    independent: float


@dataclass(frozen=True)
class LayerGradient:
    """Gradient of the margin by the layer's currents: share of exact zeros, mean l1 and l2 norm an image."""

    zeros: float
    l1: float
    l2: float


@dataclass(frozen=True)
class LayerRow:
    """One layer of neurons.

    ``rate``: spikes a neuron and step. ``spread``: std(u). ``sensitivity``: mean of ``phi(u/sigma)/sigma``,
    how much the chance to fire moves with ``u``; ``noise_lowers``: share with ``|u| < sigma``, where more
    noise lowers that.
    """

    neurons: int
    rate: float
    spread: float
    near: tuple[NearRow, ...]
    steps: tuple[StepRow, ...]
    histogram: tuple[int, ...]
    noise: NoiseFlips
    attack: AttackFlips
    sensitivity: float
    noise_lowers: float
    gradient: LayerGradient | None = None


@dataclass(frozen=True)
class HeldRow:
    """Accuracy on the attacked images if a ``share`` of all spikes is held at its value on the clean image:
    those of the neurons nearest to the threshold, of random ones, of the farthest ones."""

    share: float
    nearest: Accuracy
    at_random: Accuracy
    farthest: Accuracy


@dataclass(frozen=True)
class InputGradient:
    """Gradient of the margin by the pixels, means over images: ``zeros``: share of exact zeros; ``l1``,
    ``l2``: norms (under Linf, eps times l1 is what the paper calls the attack's upper bound; the surrogate's
    gradient bounds nothing of the network itself); ``spectral``: largest singular value of the Jacobian."""

    zeros: float
    l1: float
    l2: float
    spectral: float


@dataclass(frozen=True)
class Predictor:
    """How well a number of an unattacked image predicts that it is broken: ``auc`` 0.5 is chance."""

    name: str
    auc: float | None
    broken: int
    held: int


@dataclass(frozen=True)
class Sampled:
    """Random points of the ball, ``draws`` an image: mean ``change`` of the margin (the true sensitivity),
    and how many different ``patterns`` of spikes they reach, mean over images."""

    draws: int
    change: float
    patterns: float


@dataclass(frozen=True)
class Energy:
    """Operations an image: ``accumulates`` (a spike times a weight) and ``multiplies``; ``picojoules`` at 0.9
    and 4.6 each; ``dense_multiplies``: of the same layers without spikes, in one pass."""

    accumulates: float
    multiplies: float
    dense_multiplies: float
    picojoules: float


@dataclass(frozen=True)
class DiagnosisRecord(Record):
    """A diagnosis of a network under one attack."""

    kind: ClassVar[str] = "diagnosis"
    threat: Budget
    attack: str
    settings: Settings
    seed: int
    images: int
    sigma: float
    clean: Accuracy
    attacked: Accuracy
    layers: dict[str, LayerRow]
    held: tuple[HeldRow, ...]
    predictors: tuple[Predictor, ...]
    input_gradient: InputGradient
    sampled: Sampled
    energy: Energy
    machine: Machine
    edges: tuple[float, ...] = EDGES
    origin: Origin = field(default_factory=Origin)
    digests: Digests | None = None
