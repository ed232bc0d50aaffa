"""Defenses inside the neurons.

Stochastic gates, dynamic input gains, random heterogeneity, homeostatic thresholds.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from spikeguard.adapters.tap import tap
from spikeguard.arguments import checked_fields
from spikeguard.attacks import sapgd
from spikeguard.attacks.adaptive import AdaptiveAttack
from spikeguard.defenses.base import FIRST_PART, Defense, Hooks, Step, StudyRow
from spikeguard.defenses.membrane import shapes
from spikeguard.gradients import ASSG, BPTR, EOT
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Spiking, spiking
from spikeguard.neurons.modifiers import Dynamics, Homeostasis
from spikeguard.surrogates import Atan


@dataclass(frozen=True)
@checked_fields
class StoG(Defense):
    """A Bernoulli gate behind every neuron: ``s <- s b, b ~ Bernoulli(p)``.

    p is learned per position, and a draw holds for all time steps of a pass.
    The backward pass sees the concrete relaxation at ``temperature``; a prior ``gamma sum p^2 / 2`` acts over
    the first ``prior_share`` of the training; p stays in [``lowest``, 1] and starts at 1. Gates stay random
    at test: scored as a mean over draws. Ding et al., AAAI 2024.

    >>> own = sg.build("small", classes=10, in_shape=(1, 8, 8), timesteps=3, width=4)
    >>> sg.defenses.StoG().prepare(own)
    >>> own(x).shape, sg.defenses.StoG().is_random()
    (torch.Size([6, 10]), True)
    """

    idea: ClassVar[str] = "learned random gates behind neurons"
    formula: ClassVar[str] = "s <- s b, b ~ Bernoulli(p); L + gamma sum p^2 / 2"
    source: ClassVar[str] = "Ding et al., AAAI 2024"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd40-eot20-assg-margin",
        "SA-PGD-40, EOT 20, ASSG, margin loss",
        sapgd,
        {"steps": 40, "loss": "margin"},
        EOT(20, ASSG(start_from_first=True)),
        "Every pass draws other gates, the same for all time steps: only the mean gradient over many "
        "draws points anywhere.",
    )
    random_at_test: ClassVar[bool] = True
    row: ClassVar[StudyRow] = StudyRow("StoG")
    owns: ClassVar[frozenset[str]] = frozenset({"neurons' gate"})

    gamma: float = 5e-6
    """Weight of the prior that closes gates."""
    prior_share: float = 0.5
    """Share of the training over which the prior acts."""
    lowest: float = 0.1
    """Smallest probability that a gate is open."""
    temperature: float = 0.5
    """Temperature of the concrete relaxation in the backward pass."""

    def __post_init__(self) -> None:
        self._need(self.gamma >= 0, "gamma", "0 or more")
        self._need(0 <= self.prior_share <= 1, "prior_share", "in [0, 1]")
        self._need(0 < self.lowest <= 1, "lowest", "in (0, 1]")
        self._need(self.temperature > 0, "temperature", "above 0")

    def prepare(self, net: Classifier) -> None:
        sizes = shapes(net)
        for name, layer in spiking(net).items():
            layer.dynamics.append(Gates(sizes[name], self.temperature))

    def start(self, net: Classifier) -> Hooks:
        return _StoG(self, net)


class Gates(Dynamics):
    """Random gates of one layer, ``keep``: the probability that a gate is open."""

    def __init__(self, size: torch.Size, temperature: float) -> None:
        super().__init__()
        self.keep, self.temperature = nn.Parameter(torch.ones(size, dtype=torch.float32)), temperature

    def gate(self, spikes: Tensor) -> Tensor:
        drawn = self.uniform(spikes[:1])
        p = (
            self.keep + (self.keep.clamp(1e-4, 1 - 1e-4) - self.keep).detach()
        )  # p starts where a clamp would stop its gradient
        logit = torch.log(drawn / (1 - drawn)) + torch.log(
            p / (1 - p)
        )  # draws first: the result lies in memory as the spikes do
        soft = torch.sigmoid(logit / self.temperature)
        hard = (drawn > 1 - self.keep).to(soft.dtype)
        return spikes * (hard + (soft - soft.detach())).to(spikes.dtype)


class _StoG(Hooks):
    def __init__(self, settings: StoG, net: Classifier) -> None:
        self.settings = settings
        self.gates = [layer.dynamics.get(Gates) for layer in spiking(net).values()]

    def penalty(self, step: Step) -> Tensor | None:
        if not self.settings.gamma or step.progress >= self.settings.prior_share:
            return None
        return self.settings.gamma * torch.stack([gate.keep.square().sum() / 2 for gate in self.gates]).sum()

    @torch.no_grad()
    def after(self, step: Step) -> None:
        for gate in self.gates:
            gate.keep.clamp_(self.settings.lowest, 1.0)


@dataclass(frozen=True)
@checked_fields
class DLIF(Defense):
    """A trained gain of the current for every layer and time step, ``H = decay V + p[t] I[t]``, p from 1.

    ``decay`` replaces the recipe's (published: 0.99); None keeps it. Ding et al., ICML 2024.

    >>> sorted(sg.defenses.DLIF(decay=0.99).owned())
    ["neurons' decay", "neurons' gain"]
    """

    idea: ClassVar[str] = "a trained gain of the current per layer and step"
    formula: ClassVar[str] = "H = decay V + p[t] I[t]"
    source: ClassVar[str] = "Ding et al., ICML 2024"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd100-assg-atan0.435-first-margin",
        "SA-PGD-100, ASSG atan 0.435, margin loss",
        sapgd,
        {"steps": 100, "loss": "margin"},
        ASSG(0.435, Atan(), True),
        "A trained gain scales the potentials of every step on its own; a surrogate whose width follows "
        "them per neuron and step undoes that.",
    )
    row: ClassVar[StudyRow] = StudyRow("DLIF")

    owns: ClassVar[frozenset[str]] = frozenset({"neurons' gain", "neurons' decay"})

    decay: float | None = None
    """Decay of the neurons in place of the recipe's (published: 0.99)."""

    def __post_init__(self) -> None:
        self._need(self.decay is None or 0 <= self.decay <= 1, "decay", "in [0, 1]")

    def owned(self) -> frozenset[str]:
        return frozenset({"neurons' gain"}) if self.decay is None else self.owns

    def prepare(self, net: Classifier) -> None:
        for layer in spiking(net).values():
            layer.dynamics.append(Gains(net.timesteps))
            if self.decay is not None:
                set_decay(layer, self.decay)


def set_decay(layer: Spiking, decay: float) -> None:
    """Give a layer another decay."""
    layer.spec = replace(layer.spec, kind="lif", decay=decay)
    layer.fixed_decay = torch.tensor(decay, dtype=torch.float64, device=layer.threshold.device)


class Gains(Dynamics):
    """Gains of one layer's current, one a time step."""

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(timesteps, dtype=torch.float32))

    def charge(self, current: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        return current * self.gain.to(current.dtype).view(-1, *[1] * (current.dim() - 1)), None


@dataclass(frozen=True)
@checked_fields
class RandHet(Defense):
    """Random heterogeneity: ``H = sigmoid(r) V + (1 - sigmoid(r)) I``, ``r ~ N(0, sigma^2)`` per neuron.

    Drawn at every time step or once a pass. Random at test, too: scored as a mean over draws. iScience 2025
    (published with threshold 0.5: set the recipe's).

    >>> own = sg.build("small", classes=10, in_shape=(1, 8, 8), timesteps=3, width=4)
    >>> sg.defenses.RandHet().prepare(own)
    >>> bool((own(x) == own(x)).all())  # every pass draws other decays
    False
    """

    idea: ClassVar[str] = "random decays"
    formula: ClassVar[str] = "H = sigmoid(r) V + (1 - sigmoid(r)) I, r ~ N(0, sigma^2)"
    source: ClassVar[str] = "iScience 2025"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd30-eot40-assg-margin",
        "SA-PGD-30, EOT 40, ASSG, margin loss",
        sapgd,
        {"steps": 30, "loss": "margin"},
        EOT(40, ASSG(start_from_first=True)),
        "Decays are drawn for every neuron and step, the widest noise of all defenses here: twice the "
        "draws, fewer steps.",
    )
    random_at_test: ClassVar[bool] = True
    row: ClassVar[StudyRow] = StudyRow("RandHet")
    owns: ClassVar[frozenset[str]] = frozenset({"neurons' decay", "neurons' gain"})

    sigma: float = 1.0
    """Standard deviation of the decays' logits."""
    each_step: bool = True
    """Draw anew at every time step."""

    def __post_init__(self) -> None:
        self._need(self.sigma > 0, "sigma", "above 0")

    def prepare(self, net: Classifier) -> None:
        for layer in spiking(net).values():
            layer.dynamics.append(Heterogeneous(self.sigma, self.each_step))


class Heterogeneous(Dynamics):
    """Random decays of one layer."""

    def __init__(self, sigma: float, each_step: bool) -> None:
        super().__init__()
        self.sigma, self.each_step = sigma, each_step

    def charge(self, current: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        whole = current.expand(timesteps, *current.shape[1:])
        decay = torch.sigmoid(self.sigma * self.normal(whole if self.each_step else whole[:1]))
        return current * (1 - decay), decay.expand_as(whole)


@dataclass(frozen=True)
@checked_fields
class HoSNN(Defense):
    """Thresholds that keep potentials where they were on clean images: ``theta <- theta + rate (H - H*)``.

    Over the first ``share`` of the training neurons are plain and H*, the mean potential per neuron and step,
    is read on clean images; from then on thresholds move. The published method records H* in a network
    trained before, on clean images alone, and reads out a synaptic trace. Here training and attacks
    also differentiate by the thresholds. arXiv 2308.10373.

    >>> own = sg.build("small", classes=10, in_shape=(1, 8, 8), timesteps=3, width=4)
    >>> sg.defenses.HoSNN(rate=0.1).prepare(own)
    >>> sum("rate" in name for name, _ in own.named_parameters()) > 0  # learned per neuron
    True
    """

    idea: ClassVar[str] = "thresholds that hold potentials where they were"
    formula: ClassVar[str] = "theta <- theta + rate (H - H*)"
    source: ClassVar[str] = "arXiv 2308.10373"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd50-bptr-margin",
        "SA-PGD-50, BPTR, margin loss",
        sapgd,
        {"steps": 50, "loss": "margin"},
        BPTR(),
        "A threshold rises with the potential that the attack raises, so the path in time takes back "
        "what the spike gives; the gradient of the rate has no such path.",
    )
    row: ClassVar[StudyRow] = StudyRow("HoSNN")
    owns: ClassVar[frozenset[str]] = frozenset({"neurons' threshold", FIRST_PART})

    rate: float = 0.2
    """Rate of the thresholds at the start; learned per neuron."""
    share: float = 0.4
    """Share of the training over which thresholds stay and clean potentials are recorded."""

    def __post_init__(self) -> None:
        self._need(self.rate > 0, "rate", "above 0")
        self._need(0 < self.share < 1, "share", "in (0, 1)")

    def prepare(self, net: Classifier) -> None:
        sizes = shapes(net)
        for name, layer in spiking(net).items():
            layer.dynamics.append(Homeostatic(net.timesteps, sizes[name], self.rate))

    def start(self, net: Classifier) -> Hooks:
        return _HoSNN(self, net)


class Homeostatic(Dynamics):
    """Moving thresholds of one layer, with ``goal``, the potentials they hold."""

    def __init__(self, timesteps: int, size: torch.Size, rate: float) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.full(size, rate, dtype=torch.float32))
        self.register_buffer("goal", torch.zeros(timesteps, *size, dtype=torch.float32))
        self.register_buffer("moves", torch.tensor(False))
        self.goal: Tensor
        self.moves: Tensor

    def homeostasis(self) -> Homeostasis | None:
        return Homeostasis(self.rate, self.goal) if bool(self.moves) else None


class _HoSNN(Hooks):
    def __init__(self, settings: HoSNN, net: Classifier) -> None:
        self.settings, self.tap, self.reads = settings, tap(net), True

    def begin(self, step: Step) -> None:
        self.reads = step.progress < self.settings.share
        self.settled = not self.reads
        for layer in spiking(step.net).values():
            layer.dynamics.get(Homeostatic).moves.fill_(not self.reads)

    def complete(self, step: Step) -> None:
        if self.reads:
            step.also_clean("clean")

    def watch(self, net: Classifier, view: str) -> AbstractContextManager[object]:
        return self.tap if self.reads and view == "clean" else nullcontext()

    @torch.no_grad()
    def after(self, step: Step) -> None:
        for name, layer in spiking(step.net).items():
            if name in self.tap.potentials:
                layer.dynamics.get(Homeostatic).goal.lerp_(
                    (self.tap.potentials[name] + layer.threshold.to(torch.float32)).mean(1), 0.05
                )
        self.tap.clear()
