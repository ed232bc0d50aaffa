"""A robust ANN first, then spikes: training begins with quantized activations in one step and goes on with
neurons that do the same in T.

And an ANN altogether: the yardstick of the same layers without any spikes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from spikeguard.arguments import checked_fields
from spikeguard.attacks import apgd_targeted, sapgd
from spikeguard.attacks.adaptive import AdaptiveAttack
from spikeguard.defenses.base import FIRST_PART, Defense, Hooks, Step, StudyRow
from spikeguard.defenses.neural import set_decay
from spikeguard.errors import UserError
from spikeguard.gradients import RGA
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Spiking, spiking
from spikeguard.neurons.modifiers import Dynamics


@dataclass(frozen=True)
@checked_fields
class Conversion(Defense):
    """Over the first ``share`` of the training every layer of neurons is ``clip(floor(I T / threshold + 1/2)
    / T, 0, 1)``, in one step.

    Then its weights go on as a spiking network: no leak, soft reset, potentials that start at threshold / 2;
    fed with a constant current such a neuron fires exactly that share of T steps. ``share`` 0 trains these
    neurons directly. With ``AT`` both halves are trained on adversaries. The scale of each layer is learned
    by the batch norm before it, channel by channel: a learned threshold is the same parameter. After Bu et
    al., ICLR 2022, and Ozdenizci and Legenstein, TMLR 2024.

    >>> own = sg.build("small", classes=10, in_shape=(1, 8, 8), timesteps=3, width=4)
    >>> sg.defenses.Conversion(share=0.0).prepare(own)
    >>> {layer.spec.reset for layer in own.modules() if hasattr(layer, "spec")}
    {'soft'}
    """

    idea: ClassVar[str] = "a quantized ANN first, then spikes"
    formula: ClassVar[str] = "clip(floor(I T / theta + 1/2) / T, 0, 1), then soft reset from theta / 2"
    source: ClassVar[str] = "Bu et al., ICLR 2022"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd50-rga-margin",
        "SA-PGD-50, RGA, margin loss",
        sapgd,
        {"steps": 50, "loss": "margin"},
        RGA(),
        "A neuron without leak fires the clipped share of its mean current: the gradient of that rate "
        "is the one of the activation it was trained as.",
    )
    row: ClassVar[StudyRow] = StudyRow("conversion")
    owns: ClassVar[frozenset[str]] = frozenset(
        {"neurons' decay", "neurons' reset", "neurons' threshold", "neurons' start"}
    )

    share: float = 0.6
    """Share of the training with activations in one step; 0 trains the neurons directly."""

    def owned(self) -> frozenset[str]:
        return self.owns | {FIRST_PART} if self.share else self.owns

    def __post_init__(self) -> None:
        self._need(0 <= self.share < 1, "share", "in [0, 1)")

    def prepare(self, net: Classifier) -> None:
        for name, layer in spiking(net).items():
            if layer.spec.learn_threshold:
                raise UserError(
                    f"Conversion: learn_threshold of {name} would be learned by nothing here: the batch "
                    "norm before it scales instead"
                )
            set_decay(layer, 1.0)
            layer.spec = replace(layer.spec, reset="soft", v_init=float(layer.threshold) / 2)

    def start(self, net: Classifier) -> Hooks:
        return _Conversion(self.share, net)


@dataclass(frozen=True)
@checked_fields
class ANNTwin(Defense):
    """No defense but a yardstick: ReLU in place of the neurons, in one step.

    Layers, training and passes are those of the spiking network.

    >>> own = sg.build("small", classes=10, in_shape=(1, 8, 8), timesteps=3, width=4)
    >>> sg.defenses.ANNTwin().prepare(own)
    >>> own.timesteps, own(x).shape
    (1, torch.Size([6, 10]))
    """

    idea: ClassVar[str] = "no defense, a yardstick: the same layers without spikes"
    formula: ClassVar[str] = "ReLU(I), one step"
    source: ClassVar[str] = "a yardstick"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "apgd50-targeted",
        "APGD-T-50",
        apgd_targeted,
        {"steps": 50, "targets": 3},
        None,
        "Without spikes the own gradient is exact: the standard attack of the literature on ANNs needs "
        "no surrogate.",
    )
    row: ClassVar[StudyRow] = StudyRow("no spikes: the ANN twin")
    owns: ClassVar[frozenset[str]] = Conversion.owns | {
        "neurons' noise",
        "neurons' gain",
        "neurons' gate",
        FIRST_PART,
    }
    spikes: ClassVar[bool] = False

    def prepare(self, net: Classifier) -> None:
        net.timesteps = 1
        for layer in spiking(net).values():
            layer.dynamics.append(Rectified())


class Rectified(Dynamics):
    """ReLU in place of neurons."""

    def activation(self, current: Tensor) -> Tensor | None:
        return current.relu()


class _Stairs(torch.autograd.Function):
    """``clip(floor(x levels + 1/2) / levels, 0, 1)``.

    The derivative is that of the clip without the floor.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.half = 0.5 / levels
        return (torch.floor(x * levels + 0.5) / levels).clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] * ((x > -ctx.half) & (x < 1 + ctx.half)), None


def stairs(x: Tensor, levels: int) -> Tensor:
    """The quantized clip activation of ``x`` in units of the threshold."""
    done: Tensor = _Stairs.apply(x, levels)  # type: ignore[no-untyped-call]
    return done


class Analog(Dynamics):
    """Activations in place of neurons."""

    def __init__(self, levels: int, threshold: float) -> None:
        super().__init__()
        self.levels, self.threshold = levels, threshold

    def activation(self, current: Tensor) -> Tensor | None:
        return stairs(current.mean(0, keepdim=True) / self.threshold, self.levels)


class Posing(Hooks):
    """Trains the network with activations in one step over the first ``share`` of the training.

    With its neurons afterwards.
    """

    def __init__(self, share: float, net: Classifier) -> None:
        self.share, self.timesteps, self.analog = share, net.timesteps, False

    def activation(self, layer: Spiking) -> Dynamics:
        """What stands in the place of a layer's neurons."""
        raise NotImplementedError

    def begin(self, step: Step) -> None:
        self.pose(step.net, step.progress < self.share)

    def finish(self, net: Classifier, images: Iterator[Tensor]) -> None:
        self.pose(net, False)

    def pose(self, net: Classifier, analog: bool) -> None:
        """Put activations in place of the neurons, or take them away."""
        self.settled = not analog
        if analog == self.analog:
            return
        self.analog, net.timesteps = analog, 1 if analog else self.timesteps
        for layer in spiking(net).values():
            if analog:
                layer.dynamics.append(self.activation(layer))
            else:
                del layer.dynamics[-1]


class _Conversion(Posing):
    def activation(self, layer: Spiking) -> Dynamics:
        return Analog(self.timesteps, float(layer.threshold.detach()))
