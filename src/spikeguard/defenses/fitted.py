"""A training surrogate as wide as the potentials of its layer are large."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from spikeguard.adapters.tap import tap
from spikeguard.arguments import checked_fields
from spikeguard.attacks import sapgd
from spikeguard.attacks.adaptive import AdaptiveAttack
from spikeguard.defenses.base import Defense, Hooks, Step, StudyRow
from spikeguard.errors import UserError
from spikeguard.gradients import ASSG
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Spiking, spiking
from spikeguard.surrogates import Stretched

EVERY = 10  # steps from one reading of the potentials to the next
STAYS = 0.5  # share of the old mean that stays
LEAST = 1e-3  # the smallest mean


@dataclass(frozen=True)
@checked_fields
class FittedSurrogate(Defense):
    """Stretch every layer's surrogate to the sharpness ``1 / (reach M)``, M a running mean of ``|u|``.

    M is taken over the layer and starts at 1. The shape is the recipe's (a triangle is ``reach M`` wide).
    Potentials of training passes are read every tenth step; the last widths stay with the network: attacks
    with its own surrogate use them.

    >>> sg.defenses.FittedSurrogate(reach=2.0)
    FittedSurrogate(reach=2.0)
    """

    idea: ClassVar[str] = "ours: the training surrogate as wide as a layer's potentials are large"
    formula: ClassVar[str] = "sharpness = 1 / (reach mean |u|)"
    source: ClassVar[str] = "ours"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd50-assg-atan0.435-first-margin",
        "SA-PGD-50, ASSG atan 0.435 from the first potentials, margin loss",
        sapgd,
        {"steps": 50, "loss": "margin"},
        ASSG(start_from_first=True),
        "The network hides from the wide surrogate that training fitted to a whole layer, which stays with "
        "it: a sharper one, fitted anew to every neuron, is near the true step.",
    )
    row: ClassVar[StudyRow] = StudyRow("fitted surrogate")
    reads: ClassVar[bool] = True
    owns: ClassVar[frozenset[str]] = frozenset({"neurons' surrogate"})

    reach: float = 1.0
    """Width of the surrogate in units of the mean absolute potential."""

    def __post_init__(self) -> None:
        self._need(self.reach > 0, "reach", "above 0")

    def prepare(self, net: Classifier) -> None:
        for name, layer in spiking(net).items():
            shape = layer.spec.surrogate
            if not isinstance(shape, Stretched):
                allowed = "triangle, atan, sigmoid, gaussian or rectangle"
                raise UserError(
                    f"FittedSurrogate: {type(shape).__name__} of {name} has no width; choose {allowed}"
                )
            layer.register_buffer("reach", torch.ones((), dtype=torch.float32, device=layer.threshold.device))
            fit = partial(_fit, shape, self.reach)
            layer.register_load_state_dict_post_hook(fit)  # type: ignore[no-untyped-call]
            fit(layer)

    def start(self, net: Classifier) -> Hooks:
        return _Fitted(net, self.reach)


def _fit(shape: Stretched, factor: float, layer: Spiking, keys: object = None) -> None:
    """Make the layer's surrogate as wide as its buffer ``reach`` says."""
    reach = float(layer.reach)  # type: ignore[arg-type]
    layer.spec = replace(layer.spec, surrogate=shape.sharpened(1.0 / (factor * max(reach, LEAST))))


class _Fitted(Hooks):
    def __init__(self, net: Classifier, factor: float) -> None:
        self.tap, self.layers, self.factor = tap(net), spiking(net), factor
        self.steps = torch.zeros((), dtype=torch.int64)

    def watch(self, net: Classifier, view: str) -> AbstractContextManager[object]:
        return self.tap if view == self.view and int(self.steps) % EVERY == 0 else nullcontext()

    def complete(self, step: Step) -> None:
        self.view = step.main_view()

    @torch.no_grad()
    def after(self, step: Step) -> None:
        for name, u in self.tap.potentials.items():
            layer = self.layers[name]
            layer.reach.lerp_(u.abs().mean().float(), 1 - STAYS)  # type: ignore[operator]
            _fit(layer.spec.surrogate, self.factor, layer)  # type: ignore[arg-type]
        self.tap.clear()
        self.steps += 1

    def state(self) -> dict[str, Tensor]:
        return {"steps": self.steps}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.steps.copy_(state["steps"])
