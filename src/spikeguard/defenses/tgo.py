"""Threshold Guarding Optimization: keep membrane potentials away from the threshold, and make firing
probabilistic.

    C_l = 1/(T N) sum_t sum_i max(0, delta - |u_i[t]|)        L = L_task + lambda sum_l C_l
    lambda = lambda_max (1 - cos(pi p)) / 2                    p: share of the training that is done

C_l is also averaged over the batch; u is the potential before reset minus the threshold. The schedule's
formula and the values of delta and sigma are our choice: no source states them. "Robust Spiking Neural
Networks Against Adversarial Attacks", arXiv 2602.20548, ICLR 2026.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from spikeguard.adapters.tap import tap
from spikeguard.arguments import checked_fields
from spikeguard.attacks import pgd
from spikeguard.attacks.adaptive import THRESHOLD_FIRST, AdaptiveAttack
from spikeguard.defenses.base import Defense, Hooks, StudyRow
from spikeguard.defenses.membrane import SEES, Guarding, Sees, rising
from spikeguard.errors import SpikeguardWarning, UserError
from spikeguard.gradients import NoiseFree
from spikeguard.kernels.mode import Band
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Noise, spiking
from spikeguard.records.training import Measured
from spikeguard.surrogates import Atan

NOISE_FREE = AdaptiveAttack(
    "pgd20-noise-free",
    "PGD-20, noise-free copy",
    pgd,
    {"steps": 20, "restarts": 1, "loss": "ce"},
    NoiseFree(Atan(4.0)),
    "Noise that stays on blurs the gradient: that of the network without noise is taken instead.",
)


@dataclass(frozen=True)
@checked_fields
class TGO(Defense):
    """Threshold Guarding Optimization; ``lambda_max`` 0 leaves out the constraint, ``sigma`` 0 the noise.

    ``side`` 'below' penalizes only potentials under the threshold. ``site`` 'band' (ours): noise only where
    ``|u| < delta``. ``deltas`` and ``sigmas`` (ours): one value a spiking layer, instead of one for all.
    ``sees``: the forward passes that the constraint reads, 'trained' (those that the task loss is taken at;
    under TRADES, MART and distillation the clean one), 'clean', 'adversarial' or 'both'. UserError on
    nonsense; a warning if sigma > delta / 3.

    >>> round(sg.TGO(delta=0.5, lambda_max=1.0).weight(progress=0.5), 3)
    0.5
    """

    idea: ClassVar[str] = "potentials away from the threshold, noisy firing"
    formula: ClassVar[str] = "L + lambda sum_l mean max(0, delta - |u|); s = step(u + sigma xi)"
    source: ClassVar[str] = "arXiv 2602.20548"
    adaptive: ClassVar[AdaptiveAttack] = THRESHOLD_FIRST
    row: ClassVar[StudyRow] = StudyRow("TGO", {"lambda_max": 1.0})
    reads: ClassVar[bool] = True
    owns: ClassVar[frozenset[str]] = frozenset({"neurons' noise"})

    delta: float = 0.5
    """Distance from the threshold that potentials should keep."""
    lambda_max: float = 0.4
    """Weight of the constraint at the end of the training; 0 leaves it out."""
    sigma: float = 0.1
    """Standard deviation of the neurons' noise; 0 leaves it out."""
    side: Literal["both", "below"] = "both"
    """Penalize potentials on both sides of the threshold, or only those below it."""
    site: Literal["compare", "membrane", "band"] = "compare"
    """Where the noise is added: to the comparison, to the membrane, or to the comparison of potentials
    within delta."""
    noise_at_eval: bool = False
    """Keep the noise when the network is scored; it is a random model then."""
    sees: Sees = "trained"
    """The forward passes that the constraint reads."""
    deltas: tuple[float, ...] = ()
    """One delta for each spiking layer in place of delta."""
    sigmas: tuple[float, ...] = ()
    """One sigma for each spiking layer in place of sigma."""

    def __post_init__(self) -> None:
        for value in (self.delta, *self.deltas):
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"TGO: delta = {value} must be a finite number above 0")
        for name, values in (("lambda_max", (self.lambda_max,)), ("sigma", (self.sigma, *self.sigmas))):
            for value in values:
                if not (value >= 0 and math.isfinite(value)):
                    raise UserError(f"TGO: {name} = {value} must be a finite number, 0 or more")
        for name, allowed in (
            ("side", ("both", "below")),
            ("site", ("compare", "membrane", "band")),
            ("sees", SEES),
        ):
            self._need(getattr(self, name) in allowed, name, f"one of {', '.join(allowed)}")
        sigmas, deltas = self.sigmas or (self.sigma,), self.deltas or (self.delta,)
        layers = max(len(sigmas), len(deltas))
        pairs = zip(
            sigmas if len(sigmas) > 1 else sigmas * layers,
            deltas if len(deltas) > 1 else deltas * layers,
            strict=False,
        )
        if self.lambda_max and self.site != "band" and (loud := [(s, d) for s, d in pairs if s > d / 3]):
            warnings.warn(
                f"TGO: sigma = {loud[0][0]} is above delta / 3 = {loud[0][1] / 3:.3g}: noise lowers a "
                "neuron's sensitivity only within "
                "sigma of the threshold, and raises it for neurons that the constraint has pushed out to "
                "delta",
                SpikeguardWarning,
                stacklevel=3,
            )

    def is_random(self) -> bool:
        return self.noise_at_eval

    def adaptive_attacks(self) -> tuple[AdaptiveAttack, ...]:
        return (self.adaptive, NOISE_FREE) if self.noise_at_eval else (self.adaptive,)

    def owned(self) -> frozenset[str]:
        return self.owns if self.sigma or any(self.sigmas) else frozenset()

    def prepare(self, net: Classifier) -> None:
        if not spiking(net):
            raise UserError(
                f"TGO: {type(net).__name__} has no spiking layer of spikeguard; train it in a loop of your "
                "own with sg.guard"
            )
        if self.owned():
            for (name, layer), sigma in zip(spiking(net).items(), self._each(net, "sigma"), strict=True):
                layer.noise = Noise(
                    sigma,
                    self.site,
                    self.noise_at_eval,
                    self._bands(net)[name].delta if self.site == "band" else math.inf,
                )

    def start(self, net: Classifier) -> Hooks:
        return _TGO(self, net) if self.lambda_max else Hooks()

    def weight(self, progress: float) -> float:
        """lambda at a share of the training."""
        return rising(self.lambda_max, progress)

    def _each(self, net: Classifier, name: str) -> tuple[float, ...]:
        """A value a layer; UserError if there are more or fewer than layers."""
        values: tuple[float, ...] = getattr(self, f"{name}s")
        layers = len(spiking(net))
        if values and len(values) != layers:
            raise UserError(f"TGO: {name}s has {len(values)} values, the network {layers} spiking layers")
        return values or (getattr(self, name),) * layers

    def _bands(self, net: Classifier) -> dict[str, Band]:
        return {
            name: Band(delta, self.side)
            for name, delta in zip(spiking(net), self._each(net, "delta"), strict=True)
        }


def constraint(penalties: Mapping[str, Sequence[Tensor]]) -> Tensor:
    """``sum_l C_l`` of the penalties of each layer's calls; C_l is their mean."""
    first = next(iter(penalties.values()))[0]
    return torch.stack(
        [torch.stack(list(calls)).mean().to(first.device) for calls in penalties.values()]
    ).sum()


def by_layer(read: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """What a tap has read, by layer; a tap names a layer's later calls ``name#1``, ``name#2``, ..."""
    found: dict[str, list[Tensor]] = {}
    for call, value in read.items():
        found.setdefault(call.partition("#")[0], []).append(value)
    return found


class _TGO(Guarding):
    def __init__(self, settings: TGO, net: Classifier) -> None:
        self.settings, self.bands = settings, settings._bands(net)
        super().__init__("TGO", settings.sees, tap(net, band=self.bands.__getitem__))

    def weight(self, progress: float) -> float:
        return self.settings.weight(progress)

    def term(self) -> Tensor:
        return len(self.read) * constraint(by_layer(self.tap.penalties))

    def report(self, net: Classifier, x: Tensor, y: Tensor, settled: bool) -> dict[str, Measured]:
        with torch.no_grad(), tap(net) as opened:
            net(x[:256])
        shares = {
            name: float((u.abs() < self.bands[name.partition("#")[0]].delta).float().mean())
            for name, u in opened.potentials.items()
        }
        return {"near_threshold": shares}
