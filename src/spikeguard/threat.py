"""What an adversary may change: balls in the norms Linf, L2 and L1, inside [0, 1]."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from spikeguard.arguments import fit, shown
from spikeguard.errors import AttackError, UserError

SPARSE = 0.05  # share of the pixels that one step moves under L1
BISECTIONS = 40
ROUNDING = 1e-6
"""Excess over eps that counts as rounding."""


@dataclass(frozen=True)
class Threat(ABC):
    """The ball of images that an adversary may choose from: ``|x' - x| <= eps`` in some norm, inside [0, 1].

    ``eps``: one number, or one a sample (``[N]``), in units of images in [0, 1]. UserError if it is negative
    or not finite.
    """

    eps: float | Tensor
    norm: ClassVar[str] = ""
    slack: ClassVar[float] = 1e-6
    """Relative excess over eps that ``check`` accepts as rounding."""
    EXPECTED: ClassVar[str] = "a norm with its budget, as in sg.Linf(8 / 255)"

    def __post_init__(self) -> None:
        name = type(self).__name__
        eps: object = self.eps
        if isinstance(eps, np.ndarray) and eps.ndim and eps.dtype.kind in "iuf":
            eps = torch.from_numpy(eps.astype(np.float64))
        if isinstance(eps, Tensor) and (eps.dim() or eps.is_meta):
            if eps.dim() != 1 or eps.is_complex() or eps.dtype == torch.bool or eps.is_meta:
                raise UserError(f"{name}: eps = {shown(eps)} must be a number or numbers of shape [N]")
            object.__setattr__(self, "eps", eps.detach())
        else:
            try:
                object.__setattr__(self, "eps", fit(float, eps, f"{name}: eps"))
            except UserError as error:
                raise UserError(f"{error}, as in sg.{name}(8 / 255)") from None
        lowest, highest = self.extremes
        if not (lowest >= 0 and math.isfinite(highest)):
            bad = lowest if not lowest >= 0 else highest
            raise UserError(f"{name}: eps = {bad} must be 0 or more, and finite")

    def __repr__(self) -> str:
        low, high = self.extremes
        values = (
            f"{len(self.eps)} values from {low:.4g} to {high:.4g}"
            if isinstance(self.eps, Tensor)
            else self.eps
        )
        return f"{type(self).__name__}(eps={values})"

    @property
    def extremes(self) -> tuple[float, float]:
        """The lowest and the highest eps."""
        if not isinstance(self.eps, Tensor):
            return float(self.eps), float(self.eps)
        return (float(self.eps.min()), float(self.eps.max())) if self.eps.numel() else (0.0, 0.0)

    def allows_everything(self, x: Tensor) -> bool:
        """Whether eps is more than two images of this size can differ by at all."""
        return bool((self.per_sample(x) > self.length(torch.ones_like(x[:1])) * (1 + self.slack)).any())

    def per_sample(self, x: Tensor) -> Tensor:
        """eps as ``[N, 1, ...]``, on the device and in the dtype of ``x``."""
        eps = (
            self.eps
            if isinstance(self.eps, Tensor)
            else torch.full((len(x),), float(self.eps), dtype=torch.float64, device="cpu")
        )
        if len(eps) != len(x):
            raise UserError(f"{type(self).__name__}: {len(eps)} values of eps for {len(x)} images")
        return _over_pixels(eps.to(x), x)

    def select(self, rows: Tensor) -> Self:
        """The threat to these samples only."""
        return replace(self, eps=self.eps[rows.to(self.eps.device)]) if isinstance(self.eps, Tensor) else self

    def scaled(self, factor: float) -> Self:
        """The same norm with ``factor`` times the budget."""
        return replace(self, eps=self.eps * factor)

    @abstractmethod
    def length(self, moved: Tensor) -> Tensor:
        """The norm of ``x' - x``, ``[N]``."""

    @abstractmethod
    def project(self, candidate: Tensor, x: Tensor) -> Tensor:
        """The nearest point (Euclidean) inside the budget around ``x`` and inside [0, 1]."""

    @abstractmethod
    def steepest(self, gradient: Tensor, size: Tensor) -> Tensor:
        """The step of length ``size`` ``[N, 1, ...]`` along which a function of this gradient rises most.

        Under L1 that is one pixel; here it is shared by the 5 % of the pixels of largest gradient.
        """

    def clipped_step(self, direction: Tensor, size: Tensor) -> Tensor:
        """A step no longer than ``size`` along a direction whose pixels are already of the order of 1.

        Under Linf each pixel is clipped; under L2 and L1 it is ``steepest``.
        """
        return self.steepest(direction, size)

    def to_border(self, offset: Tensor, x: Tensor) -> Tensor:
        """An offset scaled until it is eps long: to the border of the ball."""
        return self.per_sample(x) * offset / _over_pixels(self.length(offset).clamp(min=1e-12), x)

    def random_offset(self, noise: Tensor, x: Tensor) -> Tensor:
        """Uniform noise in (-1, 1) as a random offset no longer than eps.

        Under Linf it is uniform in the ball. Under L2 and L1 it lies on the border; ``uniform_in_ball`` of
        ``attacks.random_search`` fills these balls.
        """
        return self.to_border(noise, x)

    def excess(self, found: Tensor, x: Tensor) -> float:
        """By how much the farthest of the points lies outside of the budget; negative if all lie inside."""
        eps = self.per_sample(x).flatten()
        return float((self.length(found - x) - eps * (1 + self.slack)).max()) if len(x) else 0.0

    def check(self, found: Tensor, x: Tensor) -> None:
        """Raise AttackError unless ``found`` is finite, inside [0, 1] and inside the budget.

        To 1e-6 (relative for L2 and L1).
        """
        if not bool(torch.isfinite(found).all()):
            raise AttackError("attack returned values that are not finite")
        over = self.excess(found, x)
        if over > ROUNDING or bool((found < 0).any()) or bool((found > 1).any()):
            raise AttackError(f"attack left its budget by {over:.2e} or left [0, 1]")


def _over_pixels(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 1))


@dataclass(frozen=True, repr=False)
class Linf(Threat):
    """Every pixel may change by at most ``eps``, in units of images in [0, 1].

    ``eps``: one number, or one a sample (``[N]``). UserError if it is negative or above 1.

    >>> threat = sg.Linf(8 / 255)
    >>> bool((threat.length(threat.project(x + 0.5, x) - x) <= 8 / 255 + 1e-6).all())
    True
    """

    norm: ClassVar[str] = "linf"
    slack: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (highest := self.extremes[1]) > 1:
            raise UserError(
                f"Linf: eps = {highest:g} allows every image, must be at most 1: pixels lie in [0, 1]; did "
                f"you mean sg.Linf({highest:g} / 255)?"
            )

    def scaled(self, factor: float) -> Linf:
        """The same norm with ``factor`` times the budget, at most 1, which allows every image."""
        eps = self.eps * factor
        return Linf(eps.clamp(max=1.0) if isinstance(eps, Tensor) else min(eps, 1.0))

    def length(self, moved: Tensor) -> Tensor:
        return moved.abs().flatten(1).amax(1)

    def project(self, candidate: Tensor, x: Tensor) -> Tensor:
        eps = self.per_sample(x)
        return torch.minimum(torch.maximum(candidate, x - eps), x + eps).clamp(0.0, 1.0)

    def steepest(self, gradient: Tensor, size: Tensor) -> Tensor:
        return size * gradient.sign()

    def clipped_step(self, direction: Tensor, size: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(size * direction, -size), size)

    def random_offset(self, noise: Tensor, x: Tensor) -> Tensor:
        return self.per_sample(x) * noise


@dataclass(frozen=True, repr=False)
class L2(Threat):
    """The Euclidean length of the change is at most ``eps``, in units of images in [0, 1].

    ``eps``: one number, or one a sample (``[N]``). UserError if it is negative or not finite.

    >>> sg.L2(0.5).length(torch.tensor([[3.0, 4.0]])).tolist()
    [5.0]
    """

    norm: ClassVar[str] = "l2"

    def length(self, moved: Tensor) -> Tensor:
        return moved.flatten(1).square().sum(1).sqrt()

    def project(self, candidate: Tensor, x: Tensor) -> Tensor:
        moved, eps = candidate - x, self.per_sample(x).flatten()

        def shrunk(share: Tensor) -> Tensor:
            return (x + _over_pixels(share, x) * moved).clamp(0.0, 1.0)

        low, high = torch.zeros_like(eps), torch.ones_like(eps)
        return _bisect(shrunk, low, high, lambda point: self.length(point - x) <= eps, rising=True)

    def steepest(self, gradient: Tensor, size: Tensor) -> Tensor:
        return size * gradient / _over_pixels(self.length(gradient).clamp(min=1e-30), gradient)


@dataclass(frozen=True, repr=False)
class L1(Threat):
    """The sum of absolute changes is at most ``eps``, in units of images in [0, 1].

    ``eps``: one number, or one a sample (``[N]``). UserError if it is negative or not finite.

    >>> sg.L1(2.0).length(torch.tensor([[3.0, -4.0]])).tolist()
    [7.0]
    """

    norm: ClassVar[str] = "l1"

    def length(self, moved: Tensor) -> Tensor:
        return moved.abs().flatten(1).sum(1)

    def project(self, candidate: Tensor, x: Tensor) -> Tensor:
        moved, eps = candidate - x, self.per_sample(x).flatten()

        def shrunk(cut: Tensor) -> Tensor:
            return (x + moved.sign() * (moved.abs() - _over_pixels(cut, x)).clamp(min=0.0)).clamp(0.0, 1.0)

        low, high = torch.zeros_like(eps), moved.abs().flatten(1).amax(1)
        return _bisect(shrunk, low, high, lambda point: self.length(point - x) <= eps, rising=False)

    def steepest(self, gradient: Tensor, size: Tensor) -> Tensor:
        flat = gradient.flatten(1)
        count = max(1, round(SPARSE * flat.shape[1]))
        at = flat.abs().topk(count, 1).indices
        return size * torch.zeros_like(flat).scatter(1, at, flat.gather(1, at).sign() / count).view_as(
            gradient
        )


def _bisect(
    point: Callable[[Tensor], Tensor],
    low: Tensor,
    high: Tensor,
    inside: Callable[[Tensor], Tensor],
    rising: bool,
) -> Tensor:
    """The farthest of ``point(s)`` that is inside, ``s`` in [low, high] per sample.

    ``rising``: larger s lie farther out.
    """
    outermost = high if rising else low
    if bool(inside(point(outermost)).all()):
        return point(outermost)
    free = inside(point(outermost))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fits = inside(point(middle))
        up = fits if rising else ~fits
        low, high = torch.where(up, middle, low), torch.where(up, high, middle)
    return point(torch.where(free, outermost, low if rising else high))


THREATS: dict[str, type[Threat]] = {t.norm: t for t in (Linf, L2, L1)}
"""Threats by the name of their norm: 'linf', 'l2', 'l1'."""
