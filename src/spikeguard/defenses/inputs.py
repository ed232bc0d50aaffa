"""Defenses in front of the network.

Fresh noise at every step, random rounding, and FEEL's shrinking low-pass with a leak of every neuron's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from spikeguard.arguments import checked_fields
from spikeguard.attacks import sapgd
from spikeguard.attacks.adaptive import AdaptiveAttack
from spikeguard.defenses.base import Defense, StudyRow
from spikeguard.defenses.membrane import shapes
from spikeguard.errors import UserError
from spikeguard.gradients import ASSG, BPDA, EOT, PerStep
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import spiking
from spikeguard.neurons.modifiers import Dynamics, Input
from spikeguard.surrogates import Atan


@dataclass(frozen=True)
@checked_fields
class InputNoise(Defense):
    """Randomized smoothing in its simplest form: ``x_t = x + sigma N(0, 1)``, fresh at every time step.

    In training and at test, so the model is random: it is scored as a mean over draws. After RSC-SNN, ACM MM
    2024.

    >>> sg.defenses.InputNoise(sigma=0.2)
    InputNoise(sigma=0.2)
    """

    idea: ClassVar[str] = "fresh noise on the image at every step"
    formula: ClassVar[str] = "x_t = x + sigma N(0, 1)"
    source: ClassVar[str] = "after RSC-SNN, ACM MM 2024"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd40-eot20-assg",
        "SA-PGD-40, EOT 20, ASSG",
        sapgd,
        {"steps": 40},
        EOT(20, ASSG(start_from_first=True)),
        "Every pass draws other noise: the mean of 20 gradients keeps less than a quarter of it.",
    )
    random_at_test: ClassVar[bool] = True
    row: ClassVar[StudyRow] = StudyRow("input noise")

    sigma: float = 0.1
    """Standard deviation of the noise, of pixels in [0, 1]."""

    def __post_init__(self) -> None:
        self._need(self.sigma > 0, "sigma", "above 0")

    def prepare(self, net: Classifier) -> None:
        net.before.append(NoisyInput(self.sigma))


class NoisyInput(Input):
    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        x = x.expand(timesteps, *x.shape[1:])
        return x + self.sigma * self.normal(x)


@dataclass(frozen=True)
@checked_fields
class InputQuantization(Defense):
    """Round every pixel to one of ``levels`` values, up or down at random such that its mean stays.

    The backward pass skips the rounding. ``each_step``: drawn anew at every time step. A random model: it is
    scored as a mean over draws.

    >>> sg.defenses.InputQuantization(levels=4)
    InputQuantization(levels=4, each_step=True)
    """

    idea: ClassVar[str] = "pixels rounded at random"
    formula: ClassVar[str] = "floor(x (k - 1) + U) / (k - 1)"
    source: ClassVar[str] = "common"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd40-eot20-bpda-margin",
        "SA-PGD-40, EOT 20, BPDA, margin loss",
        sapgd,
        {"steps": 40, "loss": "margin"},
        EOT(20, BPDA(Atan(4.0))),
        "Rounding has no gradient and is random: the backward pass steps over it and is averaged over "
        "20 draws.",
    )
    random_at_test: ClassVar[bool] = True
    row: ClassVar[StudyRow] = StudyRow("input quantization")

    levels: int = 8
    """Values that a pixel may take."""
    each_step: bool = True
    """Draw anew at every time step."""

    def __post_init__(self) -> None:
        self._need(self.levels >= 2, "levels", "at least 2")

    def prepare(self, net: Classifier) -> None:
        net.before.append(RoundedInput(self.levels, self.each_step))


class RoundedInput(Input):
    def __init__(self, levels: int, each_step: bool) -> None:
        super().__init__()
        self.levels, self.each_step = levels, each_step

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        x = x.expand(timesteps, *x.shape[1:]) if self.each_step else x
        top = self.levels - 1
        rounded = torch.floor(x.detach() * top + self.uniform(x)).clamp(0, top) / top
        return x + (rounded - x.detach())


@dataclass(frozen=True)
@checked_fields
class FEEL(Defense):
    """Frequency encoding and evolutionary leak: a low-pass that narrows step by step, and trained leaks.

    ``radii``: half-width of the square pass band at each step, as shares of the image's side (published for
    32 pixels and T = 4: 16, 14, 12, 10); () leaves the image alone; activations in one step see the first.
    ``leak``: trained, starts at ``leak_start``, unconstrained. Xu et al., NeurIPS 2024.

    >>> own = sg.build("small", classes=10, in_shape=(1, 8, 8), timesteps=3, width=4)
    >>> sg.defenses.FEEL(radii=(0.5, 0.4, 0.3)).prepare(own)  # one radius for each of three steps
    >>> own(x).shape
    torch.Size([6, 10])
    """

    idea: ClassVar[str] = "low-pass narrowing over time, trained leak per neuron and step"
    formula: ClassVar[str] = "x_t = IFFT(M_t FFT(x)); H = leak[t] V + I"
    source: ClassVar[str] = "Xu et al., NeurIPS 2024"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "sapgd50-assg-per-step-margin",
        "SA-PGD-50, ASSG, per-step margin loss",
        sapgd,
        {"steps": 50, "loss": "margin"},
        PerStep(ASSG(start_from_first=True)),
        "Every step sees another pass band: the loss of every step finds a disturbance that works in "
        "all of them.",
    )
    row: ClassVar[StudyRow] = StudyRow("FEEL", {"leak_start": 0.5})
    owns: ClassVar[frozenset[str]] = frozenset({"neurons' decay"})

    radii: tuple[float, ...] = (0.5, 0.4375, 0.375, 0.3125)
    """Half-width of the pass band at each step, as a share of the image's side; [] leaves the image alone."""
    leak: bool = True
    """Train a leak for every neuron and step."""
    leak_start: float = 1.0
    """The value that leaks start from."""

    def __post_init__(self) -> None:
        self._need(all(0 < r <= 0.5 for r in self.radii), "radii", "in (0, 0.5] each")
        if not (self.radii or self.leak):
            raise UserError("FEEL: radii = () and leak = False leave nothing to do")

    def owned(self) -> frozenset[str]:
        return self.owns if self.leak else frozenset()

    def prepare(self, net: Classifier) -> None:
        if self.radii:
            if len(self.radii) != net.timesteps:
                raise UserError(
                    f"FEEL: radii has {len(self.radii)} values, must have one for each of {net.timesteps} "
                    "steps"
                )
            net.before.append(LowPass(self.radii))
        if self.leak:
            sizes = shapes(net)
            for name, layer in spiking(net).items():
                layer.dynamics.append(Leaks(net.timesteps, sizes[name], self.leak_start))


class LowPass(Input):
    def __init__(self, radii: tuple[float, ...]) -> None:
        super().__init__()
        self.radii = radii

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1))  # of each step, where they differ
        masks = torch.stack([self.mask(x, r) for r in self.radii[:timesteps]])[:, None, None]
        passed: Tensor = torch.fft.ifft2(torch.fft.ifftshift(spectrum * masks, dim=(-2, -1))).abs()
        return passed

    def mask(self, x: Tensor, radius: float) -> Tensor:
        """1 inside a square around frequency 0, ``[H, W]``."""
        sides = []
        for size in x.shape[-2:]:
            away = (torch.arange(size, device=x.device) - size // 2).abs()
            sides.append((away <= radius * size).to(x.dtype))
        return torch.outer(*sides)


class Leaks(Dynamics):
    def __init__(self, timesteps: int, size: torch.Size, start: float) -> None:
        super().__init__()
        self.leak = nn.Parameter(torch.full((timesteps, *size), start, dtype=torch.float32))

    def charge(self, current: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        return current, self.leak[:, None]
