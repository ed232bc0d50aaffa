"""Training on adversaries: AT, TRADES, MART, and a temporal self-ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeguard.arguments import checked_fields
from spikeguard.attacks import sapgd, targeted
from spikeguard.attacks.adaptive import SHARPEST, AdaptiveAttack, because
from spikeguard.defenses.base import Hooks, Step, StudyRow, View
from spikeguard.defenses.crafting import ADVERSARY, Adversary, crafting_mode, jitter
from spikeguard.errors import UserError
from spikeguard.gradients import ASSG, PerStep
from spikeguard.networks.classifier import Classifier


@dataclass(frozen=True)
@checked_fields
class AT(Adversary):
    """Adversarial training: take the loss at adversaries of the cross-entropy. Madry et al., ICLR 2018.

    ``clean_share`` of it stays on the clean images. The usual recipe for spiking networks is eps 2/255, 2
    steps of 1/255.

    >>> sg.AT(eps=8 / 255, steps=4).schedule(progress=0.5)
    (1.0, 4)
    """

    idea: ClassVar[str] = "train on adversaries"
    formula: ClassVar[str] = "L(x'), x' by PGD on L"
    source: ClassVar[str] = "Madry et al., ICLR 2018"
    adaptive: ClassVar[AdaptiveAttack] = because(
        SHARPEST,
        "A network that trains on adversaries of one backward pass may hide from that pass; a surrogate "
        "that fits every neuron is another one.",
    )
    row: ClassVar[StudyRow] = StudyRow("none", ADVERSARY, group="AT")
    owns: ClassVar[frozenset[str]] = frozenset({"training inputs"})

    clean_share: float = 0.0
    """Share of the loss that stays on clean images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(0 <= self.clean_share < 1, "clean_share", "in [0, 1)")

    def start(self, net: Classifier) -> Hooks:
        return _AT(self)


class _AT(Hooks):
    def __init__(self, settings: AT) -> None:
        self.settings = settings

    def craft(self, step: Step) -> None:
        share = self.settings.clean_share
        step.views["adversarial"] = View(self.settings.adversaries(step), 1 - share)
        if share:
            step.views["clean"] = View(step.x, share)
        else:
            step.views.pop("clean", None)


def divergence(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """``KL(p || q)`` ``[N]`` of the classes' probabilities."""
    q, p = F.log_softmax(q_logits, -1), F.log_softmax(p_logits, -1)
    return (p.exp() * (p - q)).sum(-1)


@dataclass(frozen=True)
@checked_fields
class TRADES(Adversary):
    """``CE(z(x), y) + beta tau^2 KL(softmax(z(x) / tau) || softmax(z(x') / tau))``.

    x' is the adversary of that divergence. Zhang et al., ICML 2019.

    ``temperature``: tau (published for spiking networks: 2, with beta 5). The divergence is of the mean
    logits.

    >>> sg.TRADES(beta=5.0, temperature=2.0).beta
    5.0
    """

    idea: ClassVar[str] = "small divergence between clean and disturbed outputs"
    formula: ClassVar[str] = "L(x) + beta tau^2 KL(p(x) || p(x'))"
    source: ClassVar[str] = "Zhang et al., ICML 2019"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd50-assg-targeted9",
        "SA-PGD-50, ASSG, 9 target classes",
        targeted,
        {"rule": "sapgd", "steps": 50, "targets": 9, "loss": "margin"},
        ASSG(),
        "The divergence flattens the softmax, not the order of logits: the margin to every wrong class "
        "in turn is no function of it.",
    )
    row: ClassVar[StudyRow] = StudyRow("TRADES", ADVERSARY, group="regimes")
    owns: ClassVar[frozenset[str]] = frozenset({"training inputs"})

    beta: float = 6.0
    """Weight of the divergence."""
    temperature: float = 1.0
    """Both outputs are divided by it before the softmax."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.beta > 0, "beta", "above 0")
        self._need(self.temperature > 0, "temperature", "above 0")

    def start(self, net: Classifier) -> Hooks:
        return _TRADES(self)


class _TRADES(Hooks):
    def __init__(self, settings: TRADES) -> None:
        self.settings = settings

    def craft(self, step: Step) -> None:
        s = self.settings
        with crafting_mode(step.net, s.batch_norm, False), torch.no_grad():
            clean = step.net(step.x)

        def loss(logits: Tensor, y: Tensor) -> Tensor:
            return divergence(clean / s.temperature, logits / s.temperature)

        found = s.adversaries(step, loss, start=None if s.random_start else jitter(step))
        step.views["clean"] = View(step.x, 1.0)
        step.views["adversarial"] = View(found, 0.0)

    def penalty(self, step: Step) -> Tensor:
        s = self.settings
        tau = s.temperature
        return (
            s.beta * tau**2 * divergence(step.scored("clean") / tau, step.scored("adversarial") / tau).mean()
        )


@dataclass(frozen=True)
@checked_fields
class MART(Adversary):
    """Boosted cross-entropy at the adversary plus a divergence weighed by the doubt about the clean class.

    ``-log p'_y - log(1 - max_{k != y} p'_k) + beta KL(p || p') (1 - p_y)``; it takes the place of the task's
    loss. Wang et al., ICLR 2020.

    >>> sg.defenses.MART(eps=4 / 255, warmup=0.5).schedule(progress=0.25)
    (0.5, 2)
    """

    idea: ClassVar[str] = "divergence weighed by doubt"
    formula: ClassVar[str] = "BCE(x') + beta KL(p || p') (1 - p_y)"
    source: ClassVar[str] = "Wang et al., ICLR 2020"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "apgd50-assg-targeted3-dlr",
        "APGD-50, ASSG, 3 target classes, DLR loss",
        targeted,
        {"rule": "apgd", "steps": 50, "targets": 3, "loss": "dlr"},
        ASSG(start_from_first=True),
        "Its loss keeps probabilities low, which weakens the gradient of the cross-entropy; the ratio "
        "of differences of logits has no scale.",
    )
    row: ClassVar[StudyRow] = StudyRow("MART", ADVERSARY, group="regimes")
    owns: ClassVar[frozenset[str]] = frozenset({"training inputs"})

    beta: float = 5.0
    """Weight of the divergence."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.beta >= 0, "beta", "0 or more")

    def start(self, net: Classifier) -> Hooks:
        return _MART(self)


class _MART(Hooks):
    def __init__(self, settings: MART) -> None:
        self.settings = settings

    def craft(self, step: Step) -> None:
        step.views["adversarial"] = View(self.settings.adversaries(step), 0.0)
        step.views["clean"] = View(step.x, 0.0)

    def penalty(self, step: Step) -> Tensor:
        clean, found, y = step.scored("clean"), step.scored("adversarial"), step.y[:, None]
        p = found.softmax(1)
        wrong = p.scatter(1, y, 0.0).amax(1)
        boosted = F.cross_entropy(found, step.y, reduction="none") - torch.log1p(-wrong + 1e-6)
        unsure = 1 - clean.softmax(1).gather(1, y).squeeze(1)
        return (boosted + self.settings.beta * divergence(clean, found) * unsure).mean()


@dataclass(frozen=True)
@checked_fields
class TemporalEnsemble(Adversary):
    """The time steps as an ensemble: train all of them on the adversary of one that is drawn at random.

    ``CE`` of every step at x' plus ``consistency`` times ``mean_t KL(stop(mean) || z_t)``; needs the recipe's
    loss 'per_step' or 'tet'. Our own minimal version of the idea of arXiv 2508.11279, whose loss is not
    public.

    >>> recipe = sg.Recipe(defenses=(sg.defenses.TemporalEnsemble(),), loss="per_step")
    >>> recipe.defenses[0].consistency
    0.1
    """

    idea: ClassVar[str] = "time steps as an ensemble, minimal version of our own"
    formula: ClassVar[str] = "CE of all steps at the adversary of one + c KL(mean || z_t)"
    source: ClassVar[str] = "after arXiv 2508.11279"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd50-assg-per-step",
        "SA-PGD-50, ASSG, per-step loss",
        sapgd,
        {"steps": 50},
        PerStep(ASSG(start_from_first=True)),
        "Its members are the time steps: the loss of every step has to rise, not that of their mean alone.",
    )
    row: ClassVar[StudyRow] = StudyRow("temporal self-ensemble", ADVERSARY, group="regimes", loss="per_step")
    owns: ClassVar[frozenset[str]] = frozenset({"training inputs"})

    consistency: float = 0.1
    """Weight of the steps' divergence from their mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.consistency >= 0, "consistency", "0 or more")

    def start(self, net: Classifier) -> Hooks:
        return _Ensemble(self)


class OneStep(nn.Module):
    """A network that is read at one time step."""

    def __init__(self, net: Classifier, t: int) -> None:
        super().__init__()
        self.net, self.t = net, t

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x, per_step=True)[self.t]
        return logits


class _Ensemble(Hooks):
    def __init__(self, settings: TemporalEnsemble) -> None:
        self.settings = settings

    def craft(self, step: Step) -> None:
        t = step.draw("time step") % step.net.timesteps
        step.views = {"adversarial": View(self.settings.adversaries(step, model=OneStep(step.net, t)), 1.0)}

    def penalty(self, step: Step) -> Tensor:
        logits = step.logits["adversarial"]
        if logits.dim() != 3:
            raise UserError(
                "TemporalEnsemble: needs the loss of every step (recipe: loss = 'per_step' or 'tet')"
            )
        return (
            self.settings.consistency
            * divergence(logits.mean(0).detach()[None].expand_as(logits), logits).mean()
        )
