"""What a disturbance does to potentials, as a loss.

MPPD and its total-variation form, and two guards of our own that scaling cannot satisfy.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from spikeguard.adapters.tap import Tap, tap
from spikeguard.arguments import checked_fields
from spikeguard.attacks import sapgd
from spikeguard.attacks.adaptive import THRESHOLD_FIRST, AdaptiveAttack, because
from spikeguard.defenses.base import Defense, Hooks, SameDraws, Step, StudyRow, View
from spikeguard.defenses.crafting import ADVERSARY, Adversary, jitter
from spikeguard.defenses.membrane import norms_before, rising
from spikeguard.errors import UserError
from spikeguard.gradients import ThresholdFirst
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import spiking

QUANTILE, SEEN = 0.9, 2000  # of the shifts of a channel; how many of its values that is taken of


class Paired(Hooks):
    """Reads the neurons in the clean pass and in the disturbed one, both under the same noise.

    The disturbed pass is the training adversary's, or one of its own where there is none (only then do the
    settings of the inner attack matter).
    """

    def __init__(self, settings: Adversary, clean: Tap, disturbed: Tap) -> None:
        self.settings, self.clean, self.disturbed = settings, clean, disturbed
        self.view, self.draws = "", SameDraws()  # the name of the disturbed pass

    def complete(self, step: Step) -> None:
        self.clear()
        step.also_clean("clean")
        self.view = "adversarial" if "adversarial" in step.views else type(self.settings).__name__
        if self.view not in step.views:
            step.views[self.view] = View(
                self.settings.adversaries(step, start=jitter(step)), 0.0, freeze_bn=True
            )

    def watch(self, net: Classifier, view: str) -> AbstractContextManager[object]:
        watched = {"clean": self.clean, self.view: self.disturbed}.get(view)
        if watched is None:
            return nullcontext()
        self.draws.align(net)
        return watched

    def clear(self) -> None:
        """Forget the passes of the last step."""
        self.draws.clear()
        self.clean.clear()
        self.disturbed.clear()


@dataclass(frozen=True)
@checked_fields
class MPPD(Adversary):
    """Small difference of the last layer's potentials under attack: ``L + rho mean |e|^2`` or ``|e|``.

        e[t] = decay e[t-1] + (I_clean[t] - I_adv[t]),  I_clean without gradient

    The disturbed pass is the training adversary's, else ``steps`` of ``eps`` from almost x (without
    ``random_start``); decay is the layer's setting. The published loss is half clean, half disturbed:
    ``AT(clean_share=0.5)`` beside it. 'l2': Ding et al., ICML 2024 (rho 1); 'l1', the total-variation form:
    ICLR 2026 (rho 2.5 to 3).

    >>> sg.defenses.MPPD(norm="l1", rho=2.5).steps
    1
    """

    idea: ClassVar[str] = "small difference of the last layer's potentials"
    formula: ClassVar[str] = "L + rho mean e^2 (l2) or |e| (l1), e[t] = decay e[t-1] + I - I'"
    source: ClassVar[str] = "ICML 2024; ICLR 2026"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd60-threshold-first20-margin",
        "SA-PGD-60, 20 steps threshold first, margin loss",
        sapgd,
        {"steps": 60, "loss": "margin"},
        ThresholdFirst(pull=20),
        "Its potentials move little under attack, so spikes flip only where they lie near the "
        "threshold: a third of the steps pulls them there.",
    )
    row: ClassVar[StudyRow] = StudyRow("MPPD")
    reads: ClassVar[bool] = True

    eps: float = 4 / 255
    steps: int = 1
    step_size: float | None = 4 / 255
    rho: float = 1.0
    """Weight of the difference."""
    norm: Literal["l1", "l2"] = "l2"
    """Squared difference ('l2') or absolute one ('l1', total variation)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.rho > 0, "rho", "above 0")
        self._need(self.norm in ("l1", "l2"), "norm", "'l1' or 'l2'")

    def start(self, net: Classifier) -> Hooks:
        return _MPPD(self, net)


class _MPPD(Paired):
    def __init__(self, settings: MPPD, net: Classifier) -> None:
        super().__init__(settings, tap(net, currents=True), tap(net, currents=True, grad=True))
        self.rho, self.norm = settings.rho, settings.norm
        self.layer = list(spiking(net).items())[-1]

    def penalty(self, step: Step) -> Tensor | None:
        name, layer = self.layer
        if name not in self.clean.currents:
            return None  # no neurons fired: activations took their place
        clean, disturbed = self.clean.currents[name], self.disturbed.currents[name]
        e = difference(clean.detach(), disturbed, layer.decay, step.net.timesteps)
        self.clear()
        return self.rho * (e.square() if self.norm == "l2" else e.abs()).mean()


def difference(clean: Tensor, disturbed: Tensor, decay: Tensor, timesteps: int) -> Tensor:
    """The difference ``[T, N, ...]`` of two potentials without reset, from currents ``[T or 1, N, ...]``."""
    gap = (clean - disturbed).float().expand(timesteps, *clean.shape[1:])
    e, rows = torch.zeros_like(gap[0]), []
    for now in gap:
        e = decay.to(e.dtype) * e + now
        rows.append(e)
    return torch.stack(rows)


@dataclass(frozen=True)
@checked_fields
class ShiftGuard(Adversary):
    """Ours: push potentials beyond what the attack itself moves them, instead of beyond a fixed distance.

        L + lambda_max (1 - cos(pi p)) / 2  sum_l mean max(0, m_c - sign(u_clean) u_adv)

    m_c: running 0.9-quantile of ``|u_adv - u_clean|`` in the channel, without gradient. A network that
    multiplies all potentials multiplies the shifts, too, and gains nothing. The disturbed pass is the
    training adversary's, else ``steps`` of ``eps`` from almost x (without ``random_start``).

    >>> sg.defenses.ShiftGuard(lambda_max=0.5).steps
    1
    """

    idea: ClassVar[str] = "ours: potentials beyond what the attack moves them"
    formula: ClassVar[str] = "L + lambda sum_l mean max(0, m_c - sign(u) u')"
    source: ClassVar[str] = "ours"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd60-threshold-first30",
        "SA-PGD-60, 30 steps threshold first",
        sapgd,
        {"steps": 60},
        ThresholdFirst(pull=30),
        "The margin is the shift that a short training attack achieves: thirty steps that only pull "
        "potentials move them farther.",
    )
    row: ClassVar[StudyRow] = StudyRow(
        "shift guard", {**ADVERSARY, "steps": 1, "step_size": ADVERSARY["eps"]}
    )
    reads: ClassVar[bool] = True

    steps: int = 1
    step_size: float | None = 8 / 255
    lambda_max: float = 1.0
    """Weight of the constraint at the end of the training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.lambda_max > 0, "lambda_max", "above 0")

    def start(self, net: Classifier) -> Hooks:
        return _ShiftGuard(self, net)


class _ShiftGuard(Paired):
    def __init__(self, settings: ShiftGuard, net: Classifier) -> None:
        super().__init__(settings, tap(net), tap(net, grad=True))
        self.lambda_max = settings.lambda_max
        self.margins: dict[str, Tensor] = {}

    def penalty(self, step: Step) -> Tensor | None:
        clean, disturbed, terms = self.clean.potentials, self.disturbed.potentials, []
        for name, u in disturbed.items():
            shift = (u.detach() - clean[name]).abs()
            now = quantile(shift)
            self.margins[name] = now if name not in self.margins else 0.9 * self.margins[name] + 0.1 * now
            margin = self.margins[name].view(-1, *[1] * (u.dim() - 3))
            terms.append((margin - clean[name].sign() * u).clamp(min=0).mean())
        self.clear()
        return rising(self.lambda_max, step.progress) * torch.stack(terms).sum() if terms else None

    def state(self) -> dict[str, Tensor]:
        return dict(self.margins)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.margins = {name: value.clone() for name, value in state.items()}


def quantile(shift: Tensor) -> Tensor:
    """The 0.9-quantile per channel ``[C]`` of ``[T, N, C, ...]``.

    Of evenly spread values where there are many.
    """
    flat = shift.transpose(0, 2).flatten(1)
    every = max(1, flat.shape[1] // SEEN)
    return flat[:, ::every].float().quantile(QUANTILE, dim=1)


@dataclass(frozen=True)
@checked_fields
class FirstLayerGuard(Defense):
    """Ours: keep the first layer's potentials beyond the farthest shift of any disturbance of size eps.

        L + lambda_max (1 - cos(pi p)) / 2  mean max(0, s_c[t] - |u|)
        s_c[t] = eps ||w_c / std||_1 |gain_c| / sqrt(var_c) sum_{i <= t} decay^i

    with the gradient of s_c too, so that the attainable shift shrinks. Needs batch norm between the first
    convolution and the first neurons.

    >>> sg.defenses.FirstLayerGuard(eps=4 / 255)
    FirstLayerGuard(eps=0.01568627450980392, lambda_max=1.0)
    """

    idea: ClassVar[str] = "ours: first layer beyond the farthest attainable shift"
    formula: ClassVar[str] = "L + lambda mean max(0, eps ||w_c||_1 g_c D_t - |u|)"
    source: ClassVar[str] = "ours"
    adaptive: ClassVar[AdaptiveAttack] = because(
        THRESHOLD_FIRST,
        "The first layer alone is guarded: potentials of all layers behind it are pulled to the "
        "threshold first.",
    )
    row: ClassVar[StudyRow] = StudyRow("first-layer guard", {"eps": ADVERSARY["eps"]})
    reads: ClassVar[bool] = True

    eps: float = 8 / 255
    """Size of the disturbance that the first layer should bear, under Linf."""
    lambda_max: float = 1.0
    """Weight of the constraint at the end of the training."""

    def __post_init__(self) -> None:
        self._need(0 < self.eps <= 1, "eps", "in (0, 1]")
        self._need(self.lambda_max > 0, "lambda_max", "above 0")

    def start(self, net: Classifier) -> Hooks:
        return _FirstLayerGuard(self, net)


class _FirstLayerGuard(Hooks):
    def __init__(self, settings: FirstLayerGuard, net: Classifier) -> None:
        self.settings, self.tap = settings, tap(net, grad=True)
        self.name, self.layer = next(iter(spiking(net).items()))
        self.norm, self.conv = (
            norms_before(net).get(self.name),
            next(m for m in net.modules() if isinstance(m, nn.Conv2d)),
        )
        self.trained = ""
        if self.norm is None or len(self.layer.dynamics) or len(net.before):
            raise UserError(
                "FirstLayerGuard: needs batch norm between the first convolution and the first neurons, and "
                "no other change of either"
            )

    def complete(self, step: Step) -> None:
        self.tap.clear()
        self.trained = step.main_view()

    def watch(self, net: Classifier, view: str) -> AbstractContextManager[object]:
        return self.tap if view == self.trained else nullcontext()

    def penalty(self, step: Step) -> Tensor | None:
        if self.name not in self.tap.potentials:
            return None  # no neurons fired: activations took their place
        u = self.tap.potentials[self.name]
        assert self.norm is not None
        s = attainable(
            self.settings.eps, self.conv, self.norm, step.net.std, float(self.layer.decay.detach()), len(u)
        )
        self.tap.clear()
        term = (s[:, None, :, None, None] - u.abs()).clamp(min=0).mean()
        return rising(self.settings.lambda_max, step.progress) * term


def attainable(
    eps: float, conv: nn.Conv2d, norm: nn.BatchNorm2d, std: Tensor, decay: float, timesteps: int
) -> Tensor:
    """The farthest ``[T, C]`` that a disturbance of size ``eps`` under Linf moves a first layer's potentials.

    Without resets.
    """
    assert norm.running_var is not None
    reach = (
        (conv.weight / std).abs().flatten(1).sum(1) * norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    )
    sums = (decay ** torch.arange(timesteps, dtype=reach.dtype, device=reach.device)).cumsum(0)
    return eps * sums[:, None] * reach
