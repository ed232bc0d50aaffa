"""Regularizers of the membrane potential.

They measure different terms. Which forward passes they read and how their weight rises is the same code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from spikeguard.adapters.tap import Tap, tap
from spikeguard.arguments import checked_fields
from spikeguard.attacks import sapgd
from spikeguard.attacks.adaptive import AdaptiveAttack
from spikeguard.defenses.base import Defense, Hooks, Step, StudyRow
from spikeguard.errors import UserError
from spikeguard.gradients import ThresholdFirst
from spikeguard.models import modes_kept
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import spiking
from spikeguard.surrogates import Atan

Sees = Literal["trained", "clean", "adversarial", "both"]
SEES = ("trained", "clean", "adversarial", "both")


def rising(top: float, progress: float) -> float:
    """A weight that rises from 0 to ``top`` by cosine over the training."""
    return top * (1 - math.cos(math.pi * progress)) / 2


class Guarding(Hooks):
    """Adds ``weight(progress)`` times a term of what a tap reads in the passes that ``sees`` names."""

    def __init__(self, name: str, sees: Sees, opened: Tap) -> None:
        self.name, self.sees, self.tap = name, sees, opened
        self.read: set[str] = set()  # the views of this step

    def weight(self, progress: float) -> float:
        """Weight of the term at a share of the training."""
        raise NotImplementedError

    def term(self) -> Tensor:
        """The sum over layers and passes."""
        raise NotImplementedError

    def complete(self, step: Step) -> None:
        self.tap.clear()
        if self.sees == "trained":
            self.read = {step.main_view(), *(name for name, view in step.views.items() if view.weight)}
            return
        self.read = {"clean", "adversarial"} if self.sees == "both" else {self.sees}
        if "adversarial" in self.read and "adversarial" not in step.views:
            raise UserError(
                f"{self.name}: sees = {self.sees!r} needs adversarial training (add the defense 'at')"
            )
        if "clean" in self.read:
            step.also_clean("clean")

    def watch(self, net: Classifier, view: str) -> AbstractContextManager[object]:
        return self.tap if view in self.read else nullcontext()

    def penalty(self, step: Step) -> Tensor | None:
        if not (self.tap.potentials or self.tap.penalties):
            return None  # no neurons fired: activations took their place
        total = self.term() / len(self.read)
        self.tap.clear()
        return self.weight(step.progress) * total


@dataclass(frozen=True)
@checked_fields
class MPDSGR(Defense):
    """Penalize the probability mass of potentials that lies inside the surrogate's support.

        L = CE + eta 1/(L C T) sum_{l,c,t} [ Phi((mu + gamma) / sigma) - Phi((mu - gamma) / sigma) ]

    of ``u ~ N(mu, sigma^2)`` per channel and step. ``moments`` 'empirical': mean and deviation over batch and
    space; 'batch norm': their values from batch norm's parameters alone, as the paper derives them (mu from
    beta, sigma from the gain; layers without batch norm are left out). ``eta`` rises by
    cosine if ``rises``. arXiv 2511.12199, AAAI 2026; eta is our choice, the source does not state it.

    >>> sg.defenses.MPDSGR(eta=0.5, moments="batch norm").sees
    'trained'
    """

    idea: ClassVar[str] = "little probability mass inside the surrogate's support"
    formula: ClassVar[str] = "L + eta mean [Phi((mu + g)/s) - Phi((mu - g)/s)]"
    source: ClassVar[str] = "arXiv 2511.12199"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd40-threshold-first-wide",
        "SA-PGD-40, threshold first, width 1, Atan(1)",
        sapgd,
        {"steps": 40},
        ThresholdFirst(width=1.0, surrogate=Atan(1.0)),
        "Its loss empties the training surrogate's support, of half-width 1: potentials are pulled back "
        "into it, and the attack's surrogate has tails beyond it.",
    )
    row: ClassVar[StudyRow] = StudyRow("MPD-SGR")
    reads: ClassVar[bool] = True

    eta: float = 1.0
    """Weight of the probability mass."""
    gamma: float = 1.0
    """Half-width of the surrogate's support."""
    moments: Literal["empirical", "batch norm"] = "empirical"
    """Moments of the potentials in the batch, or those that batch norm's parameters imply."""
    rises: bool = False
    """The weight rises by cosine over the training."""
    sees: Sees = "trained"
    """The forward passes that the loss reads."""

    def __post_init__(self) -> None:
        self._need(self.eta > 0, "eta", "above 0")
        self._need(self.gamma > 0, "gamma", "above 0")
        self._need(self.moments in ("empirical", "batch norm"), "moments", "'empirical' or 'batch norm'")
        self._need(self.sees in SEES, "sees", f"one of {', '.join(SEES)}")

    def start(self, net: Classifier) -> Hooks:
        return _MPDSGR(self, net)


class _MPDSGR(Guarding):
    def __init__(self, settings: MPDSGR, net: Classifier) -> None:
        empirical = settings.moments == "empirical"
        super().__init__("MPDSGR", settings.sees, tap(net, potentials=True, grad=empirical))
        self.settings, self.layers, self.norms = settings, spiking(net), norms_before(net)
        if not empirical and (not self.norms or any(len(layer.dynamics) for layer in self.layers.values())):
            raise UserError(
                "MPDSGR: moments = 'batch norm' needs layers with batch norm, and neurons of the usual "
                "kind; take 'empirical'"
            )

    def weight(self, progress: float) -> float:
        return rising(self.settings.eta, progress) if self.settings.rises else self.settings.eta

    def term(self) -> Tensor:
        terms = []
        for call, u in self.tap.potentials.items():
            name = call.partition("#")[0]
            mean, deviation = moments(u)
            if self.settings.moments == "batch norm":
                if name not in self.norms:
                    continue
                mean, deviation = moments_after_norm(
                    mean,
                    self.norms[name],
                    float(self.layers[name].decay.detach()),
                    self.layers[name].threshold,
                )
            terms.append(mass(mean, deviation, self.settings.gamma).mean())
        return torch.stack(terms).mean() * len(self.read)


def norms_before(net: Classifier) -> dict[str, nn.BatchNorm2d]:
    """The batch norm before each spiking layer that has one, by the layer's name."""
    return {name: layer.norm for name, layer in spiking(net).items() if layer.norm is not None}


def shapes(net: Classifier) -> dict[str, torch.Size]:
    """The shape ``[C, H, W]`` (or ``[F]``) of each layer's neurons."""
    with blank(net) as x, tap(net, currents=True) as opened:
        net(x)
    return {name: current.shape[2:] for name, current in opened.currents.items() if "#" not in name}


@contextmanager
def blank(net: Classifier) -> Iterator[Tensor]:
    """One blank image for a pass that leaves no trace."""
    with modes_kept(net), torch.no_grad():
        yield torch.zeros(1, *net.in_shape, dtype=net.mean.dtype, device=net.mean.device)


def moments(u: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of ``u`` ``[T, N, C, ...]`` per step and channel, ``[T, C]``."""
    flat = u.transpose(1, 2).flatten(2)
    return flat.mean(2), flat.var(2, unbiased=False).add(1e-8).sqrt()


def moments_after_norm(
    measured: Tensor, norm: nn.BatchNorm2d, decay: float, threshold: Tensor
) -> tuple[Tensor, Tensor]:
    """Moments ``[T, C]`` as functions of batch norm: ``mu = beta D(decay) - threshold - S``, ``sigma^2 =
    gain^2 D(decay^2)``.

    ``D(r)[t] = sum_{i <= t} r^i``; S, what resets take away, is the rest of the
    ``measured`` mean and carries no gradient.
    """
    powers = decay ** torch.arange(len(measured), dtype=measured.dtype, device=measured.device)
    sums, squares = powers.cumsum(0)[:, None], powers.square().cumsum(0)[:, None]
    free = norm.bias * sums - threshold.to(measured.dtype)
    return free + (measured - free).detach(), norm.weight.abs() * squares.sqrt() + 1e-4


def mass(mean: Tensor, deviation: Tensor, gamma: float) -> Tensor:
    """Probability that a normal variable lies within ``gamma`` of 0."""
    root = deviation * 2**0.5
    return (torch.erf((mean + gamma) / root) - torch.erf((mean - gamma) / root)) / 2
