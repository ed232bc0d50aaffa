"""A defense: frozen settings that may change the network and, while it trains, hook into the loop.

Every hook is optional.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from spikeguard.attacks.adaptive import SHARPEST, AdaptiveAttack
from spikeguard.data.batches import TrainingBatch
from spikeguard.errors import UserError
from spikeguard.networks.classifier import Classifier
from spikeguard.random import draws
from spikeguard.random.streams import StochasticModule
from spikeguard.records.training import Measured

FIRST_PART = "first part of the training"


@dataclass
class View:
    """One forward pass of a training step: its images and the weight of its task loss.

    Weight 0: a defense only reads the pass, or takes a loss of its own there. ``freeze_bn``: the running
    averages of batch norm stay, because nothing is trained to do well there.

    >>> sg.defenses.View(x, weight=0.5).freeze_bn
    False
    """

    x: Tensor
    weight: float
    freeze_bn: bool = False

    def __repr__(self) -> str:
        return f"View(x {list(self.x.shape)}, weight {self.weight}, freeze_bn {self.freeze_bn})"


@dataclass
class Moment:
    """A batch ``x`` ``[N, ...]``, ``y`` ``[N]`` of the training of any network, and the key of its draws.

    ``progress`` runs from 0 to 1 over the training.
    """

    net: nn.Module
    x: Tensor
    y: Tensor
    key: int = 0
    progress: float = 0.0

    def draw(self, *parts: str | int) -> int:
        """A key for random numbers of this step."""
        return draws.key(self.key, *parts)


@dataclass
class Step(Moment):
    """One training step, as its hooks see it.

    ``x`` ``[N, C, H, W]`` in [0, 1] and ``y`` ``[N]``: the batch. ``progress`` runs from 0 to 1 over the
    training. ``views`` maps a name ('clean', 'adversarial', ...) to a forward pass; ``logits`` to what came
    out: ``[N, K]``, or ``[T, N, K]`` with a loss of every step. ``batch``: the images' places in the training
    set ``[N]``, and how they were shifted and mirrored; None outside a training's own steps.

    >>> step = sg.defenses.Step(net, x, y)
    >>> step.main_view(), step.draw("noise") == step.draw("noise")
    ('clean', True)
    """

    net: Classifier
    views: dict[str, View] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)
    batch: TrainingBatch | None = None

    def __repr__(self) -> str:
        return f"Step(x {list(self.x.shape)}, progress {self.progress:.2f}, views {', '.join(self.views)})"

    def __post_init__(self) -> None:
        self.views = self.views or {"clean": View(self.x, 1.0)}

    def also_clean(self, view: str) -> None:
        """Add a forward pass of the clean images under this name, unless a defense has done so."""
        self.views.setdefault(view, View(self.x, 0.0, freeze_bn=True))

    def scored(self, view: str) -> Tensor:
        """Logits ``[N, K]`` of a view, the mean over time: what a test scores."""
        logits = self.logits[view]
        return logits.mean(0) if logits.dim() == 3 else logits

    def main_view(self) -> str:
        """The view that most of the loss is taken at.

        'clean' where a defense replaces the loss altogether.
        """
        return max(self.views, key=lambda name: (self.views[name].weight, name == "clean"))


class Hooks:
    """What a defense does during training, in the order in which the loop calls it.

    Everything random comes from ``step.draw``.

    >>> sg.defenses.Hooks().penalty(sg.defenses.Step(net, x, y)) is None
    True
    """

    settled = True  # False while the network is not yet of the kind that is kept
    ended = False  # True once the training is to end after this epoch
    last = False  # True: ``finish`` acts after that of all others

    def begin(self, step: Step) -> None:
        """Before anything else of a step, and before a validation.

        Put the network into the state of this part of the training.
        """

    def craft(self, step: Step) -> None:
        """Change the training inputs: ``step.views``."""

    def complete(self, step: Step) -> None:
        """Called after all ``craft``: add forward passes that this defense has to see."""

    def watch(self, net: Classifier, view: str) -> AbstractContextManager[object]:
        """Context around the forward pass of a view."""
        return nullcontext()

    def penalty(self, step: Step) -> Tensor | None:
        """Loss term of this step, after the forward passes."""
        return None

    def gradients(self, net: Classifier) -> None:
        """Between the backward pass and the optimizer's step: change the parameters' gradients."""

    def after(self, step: Step) -> None:
        """After the optimizer's step: change the parameters."""

    def report(self, net: Classifier, x: Tensor, y: Tensor, settled: bool) -> dict[str, Measured]:
        """Figures for the metrics, from all validation images at the end of an epoch, network in eval mode.

        ``settled``: the hooks of all defenses are settled.
        """
        return {}

    def finish(self, net: Classifier, images: Iterator[Tensor]) -> None:
        """After the last step: change the network that is kept; ``images``: batches of training images."""

    def state(self) -> dict[str, Tensor]:
        """What has to be kept for a training to be resumed to the same bits."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put ``state()`` back."""


class SameDraws:
    """Gives two forward passes of a step the same random draws, so that they do not differ in their noise."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def clear(self) -> None:
        """Before the first pass."""
        self.calls = {}

    def align(self, net: Classifier) -> None:
        """Before each of them."""
        sources = {
            name: m.source
            for name, m in net.named_modules()
            if isinstance(m, StochasticModule) and m.source is not None
        }
        for name, source in sources.items():
            source.calls = self.calls.setdefault(name, source.calls)


@dataclass(frozen=True)
class StudyRow:
    """The row of the study that speaks of a defense.

    ``name`` '' is the class's own. ``settings`` of the defense, ``loss`` of the recipe. ``group`` '': trained
    without and with adversarial training; 'regimes': a regime of its own, beside the defenses ``beside``;
    'AT': the baseline of that group.

    >>> sg.defenses.StudyRow("wide", {"delta": 1.0}).settings
    {'delta': 1.0}
    """

    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    loss: str = "mean"
    beside: tuple[Defense, ...] = ()


@dataclass(frozen=True)
class Defense:
    """Settings of a defense; a subclass says what it does, and all that documents and the study say of it.

    For documents: ``idea``, ``formula``, ``source``, each on one line. ``adaptive``: the attack made for it.
    ``random_at_test``: the network is stochastic when it is scored. ``row``: of the study. ``owns``: what it
    sets: in the neurons (noise, decay, threshold, reset, start, gain, gate, surrogate), the training inputs,
    the weights kept, the first part of the training. No two defenses may own the same. ``chooses``: by
    validation images. ``reads``: it acts on potentials; ``spikes``: the network has any.

    >>> sg.TGO().owned(), sg.TGO().is_random()
    (frozenset({"neurons' noise"}), False)
    """

    idea: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""
    adaptive: ClassVar[AdaptiveAttack] = SHARPEST
    random_at_test: ClassVar[bool] = False
    row: ClassVar[StudyRow] = StudyRow()
    owns: ClassVar[frozenset[str]] = frozenset()
    chooses: ClassVar[bool] = False
    reads: ClassVar[bool] = False
    spikes: ClassVar[bool] = True

    def is_random(self) -> bool:
        """Whether a network with these settings is stochastic when it is scored."""
        return self.random_at_test

    def adaptive_attacks(self) -> tuple[AdaptiveAttack, ...]:
        """What an audit of a network with these settings runs beside its suite."""
        return (self.adaptive,)

    def owned(self) -> frozenset[str]:
        """What these settings set; a part of ``owns`` where a part is switched off."""
        return self.owns

    def prepare(self, net: Classifier) -> None:
        """Change the network itself, before training and after loading."""

    def start(self, net: Classifier) -> Hooks:
        """Hooks for one training."""
        return Hooks()

    def _need(self, good: bool, name: str, allowed: str) -> None:
        if not good:
            raise UserError(f"{type(self).__name__}: {name} = {getattr(self, name)!r} must be {allowed}")


def compose(*defenses: Defense) -> tuple[Defense, ...]:
    """Several defenses as one, for ``Recipe(defenses=...)``; they act in this order.

    UserError if one is no defense or named twice, if two set the same thing, or if one acts on potentials and
    another leaves none.

    >>> [type(d).__name__ for d in sg.compose(sg.AT(eps=8 / 255), sg.TGO())]
    ['AT', 'TGO']
    >>> sg.compose(sg.AT(), sg.TRADES())
    Traceback (most recent call last):
    spikeguard.errors.UserError: compose: AT and TRADES both set the training inputs; leave one of them out
    """
    owners: dict[str, str] = {}
    for k, defense in enumerate(defenses):
        name = type(defense).__name__
        if not isinstance(defense, Defense):
            raise UserError(f"compose: {name} is no defense")
        if any(type(other) is type(defense) for other in defenses[:k]):
            raise UserError(f"compose: {name} is named more than once")
        for what in sorted(defense.owned()):
            if what in owners:
                raise UserError(
                    f"compose: {owners[what]} and {name} both set the {what}; leave one of them out"
                )
            owners[what] = name
    if (without := [d for d in defenses if not d.spikes]) and (reading := [d for d in defenses if d.reads]):
        raise UserError(
            f"compose: {type(reading[0]).__name__} acts on potentials, and {type(without[0]).__name__} "
            "leaves none; leave one of them out"
        )
    return defenses
