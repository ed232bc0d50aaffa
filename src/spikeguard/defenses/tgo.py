"""Threshold Guarding Optimization: keep membrane potentials away from the threshold, and make firing probabilistic.

    C_l = 1/(T N) sum_t sum_i max(0, delta - |u_i[t]|)        L = L_task + lambda sum_l C_l
    lambda = lambda_max (1 - cos(pi p)) / 2                    p: share of the training that is done

C_l is also averaged over the batch; u is the potential before reset minus the threshold. The schedule's formula and the values of
delta and sigma are our choice: no source states them. "Robust Spiking Neural Networks Against Adversarial Attacks",
arXiv 2602.20548, ICLR 2026.
"""

from __future__ import annotations

import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from spikeguard.defenses.base import Defense, Hooks, View
from spikeguard.errors import SpikeguardWarning, UserError
from spikeguard.kernels.mode import Band
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Noise, spiking
from spikeguard.taps import tap


@dataclass(frozen=True)
class TGO(Defense):
    """``lambda_max`` 0 leaves out the constraint, ``sigma`` 0 the noise.

    ``side`` 'below' penalises only potentials under the threshold. ``sees``: the forward passes that the constraint reads, 'trained' (those
    in the loss), 'clean', 'adversarial' or 'both'. UserError on nonsense; a warning if sigma > delta / 3.
    """

    adaptive: ClassVar[str] = "SA-PGD-30 pulled"

    delta: float = 0.5
    lambda_max: float = 0.4
    sigma: float = 0.1
    side: Literal["both", "below"] = "both"
    site: Literal["compare", "membrane"] = "compare"
    noise_at_eval: bool = False
    sees: Literal["trained", "clean", "adversarial", "both"] = "trained"

    def __post_init__(self) -> None:
        if not (self.delta > 0 and math.isfinite(self.delta)):
            raise UserError(f"TGO: delta = {self.delta} must be a finite number above 0")
        for name in ("lambda_max", "sigma"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise UserError(f"TGO: {name} = {value} must be a finite number, 0 or more")
        for name, allowed in (
            ("side", ("both", "below")),
            ("site", ("compare", "membrane")),
            ("sees", ("trained", "clean", "adversarial", "both")),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(f"TGO: {name} = {getattr(self, name)!r} must be one of {', '.join(allowed)}")
        if self.lambda_max and self.sigma > self.delta / 3:
            warnings.warn(
                f"TGO: sigma = {self.sigma} is above delta / 3 = {self.delta / 3:.3g}: noise lowers a neuron's sensitivity only within "
                "sigma of the threshold, and raises it for neurons that the constraint has pushed out to delta",
                SpikeguardWarning,
                stacklevel=3,
            )

    def prepare(self, net: Classifier) -> None:
        if self.sigma:
            for layer in spiking(net).values():
                layer.noise = Noise(self.sigma, self.site, self.noise_at_eval)

    def start(self, net: Classifier) -> Hooks:
        return _Guarding(self, net) if self.lambda_max else Hooks()

    def weight(self, progress: float) -> float:
        """lambda at a share of the training."""
        return self.lambda_max * (1 - math.cos(math.pi * progress)) / 2


class _Guarding(Hooks):
    def __init__(self, settings: TGO, net: Classifier) -> None:
        self.settings = settings
        self.tap = tap(net, band=Band(settings.delta, settings.side))
        self.views = 0
        self.last = 0.0

    def complete(self, x: Tensor, views: dict[str, View]) -> None:
        wanted = {"clean": ["clean"], "adversarial": ["adversarial"], "both": ["clean", "adversarial"]}.get(self.settings.sees, [])
        for name in wanted:
            if name == "adversarial" and name not in views:
                raise UserError(f"TGO: sees = {self.settings.sees!r} needs adversarial training (add the defence 'at')")
            views.setdefault(name, View(x, 0.0))

    def watch(self, net: Classifier, view: str) -> AbstractContextManager[object]:
        if self.settings.sees not in ("trained", "both", view):
            return nullcontext()
        self.views += 1
        return self.tap

    def penalty(self, progress: float) -> Tensor | None:
        total = torch.stack(list(self.tap.penalties.values())).sum() / max(self.views, 1)
        self.tap.clear()
        self.views = 0
        return self.settings.weight(progress) * total

    def report(self, net: Classifier, x: Tensor) -> dict[str, object]:
        with torch.no_grad(), tap(net) as opened:
            net(x)
        return {"near_threshold": {k: float((u.abs() < self.settings.delta).float().mean()) for k, u in opened.potentials.items()}}
