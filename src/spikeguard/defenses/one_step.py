"""Training on adversaries of one step: a third of the cost of PGD.

A single step may teach a network to hide from it (catastrophic overfitting). Both defenses here have a means
against that; ``OverfittingStop`` ends a training that it befalls all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spikeguard.arguments import checked_fields
from spikeguard.attacks.adaptive import SHARPEST, AdaptiveAttack, because
from spikeguard.defenses.base import Hooks, Step, StudyRow, View
from spikeguard.defenses.crafting import ADVERSARY, TrainingAdversary, crafting_mode
from spikeguard.errors import UserError
from spikeguard.losses import ce
from spikeguard.networks.classifier import Classifier
from spikeguard.random import draws

ONE_STEP = because(
    SHARPEST,
    "A network that trains on one step of one backward pass may hide from that pass; a surrogate that fits "
    "every neuron, in many steps, is another one.",
)
IN_STUDY = {name: ADVERSARY[name] for name in ("eps", "warmup")}


@dataclass(frozen=True)
class OneStepAdversary(TrainingAdversary):
    """What defenses that train on adversaries of one step share.

    ``warmup``: share of the training over which eps rises from 0. ``estimators``: names of
    ``CRAFTING_GRADIENTS``; one is drawn for every batch.
    """

    adaptive: ClassVar[AdaptiveAttack] = ONE_STEP
    owns: ClassVar[frozenset[str]] = frozenset({"training inputs"})

    eps: float = 8 / 255
    """Budget of the training adversaries under Linf, of pixels in [0, 1]."""
    warmup: float = 0.0
    """Share of the training over which eps rises from 0."""
    estimators: tuple[str, ...] = ("own",)
    """Where gradients for crafting come from; one is drawn for every batch."""

    def budget(self, progress: float) -> float:
        """eps at a share of the training."""
        return self.eps * min(1.0, progress / self.warmup) if self.warmup else self.eps

    def direction(self, step: Step, start: Tensor) -> Tensor:
        """Sign of the gradient of the cross-entropy at ``start``, ``[N, C, H, W]``."""
        with crafting_mode(step.net, "eval", False), self.estimator(step).open(step.net) as opened:
            gradient, _, _ = opened(start, step.y, ce)
        return gradient.sign()


@dataclass(frozen=True)
@checked_fields
class NFGSM(OneStepAdversary):
    """N-FGSM: noise in a ball larger than the budget, one full step from there, no projection.

    ``x' = x + n + eps sign(grad L(x + n))`` with n uniform in ``radius`` times eps, both kept in [0, 1]. De
    Jorge et al., NeurIPS 2022.

    >>> sg.defenses.NFGSM(eps=8 / 255, warmup=0.5).budget(progress=0.25) * 255
    4.0
    """

    idea: ClassVar[str] = "train on adversaries of one step from strong noise"
    formula: ClassVar[str] = "L(x + n + eps sign grad L(x + n)), n uniform in 2 eps"
    source: ClassVar[str] = "de Jorge et al., NeurIPS 2022"
    row: ClassVar[StudyRow] = StudyRow("N-FGSM", IN_STUDY, group="regimes")

    radius: float = 2.0
    """Radius of the noise in units of eps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.radius >= 0, "radius", "0 or more")

    def start(self, net: Classifier) -> Hooks:
        return _NFGSM(self)


class _NFGSM(Hooks):
    def __init__(self, settings: NFGSM) -> None:
        self.settings = settings

    def craft(self, step: Step) -> None:
        s, x = self.settings, step.x
        eps, samples = s.budget(step.progress), torch.arange(len(x), device=x.device)
        noise = draws.uniform(step.draw("noise"), samples, x[0].numel()).view_as(x)
        start = (x + s.radius * eps * (2 * noise - 1)).clamp(0, 1)
        found = (start + eps * s.direction(step, start)).clamp(0, 1)
        step.views = {"adversarial": View(found, 1.0)}


@dataclass(frozen=True)
@checked_fields
class PGI(OneStepAdversary):
    """FGSM-PGI: one step from the perturbation that the last epoch found for the same image.

    It begins at random corners of the ball. ``pull`` times the squared distance of the adversary's outputs
    from those at its start is added to the loss. Perturbations are kept in the images' own frame, in units
    of eps: -1, 0 or 1, two bits a pixel in a checkpoint (38 MB for 50,000 images of CIFAR). Jia et al., ECCV
    2022.

    >>> sg.defenses.PGI(eps=8 / 255).pull
    10.0
    """

    idea: ClassVar[str] = "train on adversaries of one step from the last epoch's"
    formula: ClassVar[str] = "L(x + d) + w |z(x + d) - z(x + d0)|^2, d0 of the last epoch"
    source: ClassVar[str] = "Jia et al., ECCV 2022"
    row: ClassVar[StudyRow] = StudyRow("FGSM-PGI", IN_STUDY, group="regimes")

    pull: float = 10.0
    """Weight of the outputs' squared distance from those at the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.pull >= 0, "pull", "0 or more")

    def start(self, net: Classifier) -> Hooks:
        return _PGI(self, net)


class _PGI(Hooks):
    def __init__(self, settings: PGI, net: Classifier) -> None:
        self.settings, self.shape = settings, net.in_shape
        self.prior = torch.zeros(0, *net.in_shape, dtype=torch.int8)  # [training images, C, H, W]

    def craft(self, step: Step) -> None:
        batch, s = step.batch, self.settings
        if batch is None:
            raise UserError("PGI: needs the batches of a training, which know their images")
        if not len(self.prior):
            count = batch.images
            coins = torch.randint(0, 2, (count, *self.shape), generator=draws.generator(step.draw("first")))
            self.prior = (2 * coins - 1).to(torch.int8)
        eps, rows = s.budget(step.progress), batch.rows.cpu()
        before = self.prior[rows].to(step.x.device)
        prior = before if batch.placement is None else batch.placement.apply(before)
        start = (step.x + eps * prior).clamp(0, 1)
        found = (prior + s.direction(step, start).to(torch.int8)).clamp(-1, 1)
        after = found if batch.placement is None else batch.placement.put_back(found, before)
        self.prior[rows] = after.cpu()
        step.views = {"adversarial": View((step.x + eps * found).clamp(0, 1), 1.0)}
        if s.pull:
            step.views["start"] = View(start, 0.0, freeze_bn=True)

    def penalty(self, step: Step) -> Tensor | None:
        if not self.settings.pull:
            return None
        distance = step.scored("adversarial") - step.scored("start")
        return self.settings.pull * distance.square().mean()

    def state(self) -> dict[str, Tensor]:
        return {"prior": packed(self.prior)} if len(self.prior) else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if "prior" in state:
            self.prior = unpacked(state["prior"].cpu(), self.shape)


FIELDS = 4  # values of two bits in a byte


def packed(values: Tensor) -> Tensor:
    """Values -1, 0 or 1 ``[N, ...]`` as bytes ``[N, bytes]`` of four."""
    flat = (values.flatten(1) + 1).to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % FIELDS)).unflatten(1, (-1, FIELDS))
    shifts = torch.tensor([1, 4, 16, 64], dtype=torch.uint8)
    stored: Tensor = (flat * shifts).sum(-1, dtype=torch.uint8)
    return stored


def unpacked(stored: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What ``packed`` packed, ``[N, *shape]`` int8."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    flat = ((stored[..., None] >> shifts) & 3).flatten(1).to(torch.int8) - 1
    values: Tensor = flat[:, : torch.Size(shape).numel()].reshape(-1, *shape)
    return values
