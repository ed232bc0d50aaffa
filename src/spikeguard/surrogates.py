"""The derivative that stands in for that of the step function.

A spike is ``step(u)``, whose true derivative is 0 almost everywhere. Backward passes use ``g(u)`` instead,
the surrogate. Every surrogate here but two is one shape ``k`` stretched by a sharpness ``a``: ``g(u) = a k(a
u)``, so that its area does not depend on ``a``. ``soft_step`` is a primitive of ``g``: with it in the forward
pass, ``g`` is the exact derivative.

Neftci, Mostafa, Zenke, "Surrogate gradient learning in spiking neural networks", 2019.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spikeguard.arguments import checked_fields
from spikeguard.errors import UserError

__all__ = [
    "Surrogate",
    "Triangle",
    "Atan",
    "Sigmoid",
    "Gaussian",
    "Rectangle",
    "Exponential",
    "StraightThrough",
]


class Surrogate(ABC):
    """Stand-in derivative of the step function; ``u`` is the distance to the threshold, any shape.

    ``sharpness`` is ``a``. ``native`` is the derivative in C++ of a class that ``kernels/expressions.py``
    does not list; a class without one is compiled by torch.

    >>> surrogate = sg.surrogates.Triangle(width=1.0)
    >>> surrogate.derivative(torch.tensor([-1.0, 0.0, 0.5])).tolist()
    [0.0, 1.0, 0.5]
    """

    EXPECTED: ClassVar[str] = "a Surrogate, such as Triangle(width=1.0)"
    native: str = ""
    sharpness: float = 1.0

    @abstractmethod
    def derivative(self, u: Tensor, sharpness: Tensor | None = None) -> Tensor:
        """g(u), same shape as ``u``; ``sharpness`` (same shape) replaces the surrogate's own ``a``."""

    @abstractmethod
    def soft_step(self, u: Tensor) -> Tensor:
        """A primitive of g, 1/2 at the threshold."""

    def kernel(self) -> Surrogate:
        """The surrogate that backward kernels are compiled for; they get the sharpness as an argument."""
        return self

    def observe(self, u: Tensor) -> Tensor | None:
        """Gets the potentials ``[T, N, ...]`` of each forward pass; may return a sharpness for backward."""
        return None


class Stretched(Surrogate):
    """A surrogate of the form ``a k(a u)``."""

    @abstractmethod
    def shape(self, z: Tensor) -> Tensor:
        """k(z), of area 1."""

    @abstractmethod
    def primitive(self, z: Tensor) -> Tensor:
        """Integral of k from minus infinity to z."""

    def kernel(self) -> Surrogate:
        return type(self)()

    def sharpened(self, sharpness: float) -> Stretched:
        """The same shape with another sharpness; the one field of these classes is a slope or a width."""
        made: Stretched = type(self)(sharpness if hasattr(self, "slope") else 1.0 / sharpness)  # type: ignore[call-arg]
        assert math.isclose(made.sharpness, sharpness, rel_tol=1e-6), (
            f"{type(self).__name__} is of another form: it needs its own"
        )
        return made

    def derivative(self, u: Tensor, sharpness: Tensor | None = None) -> Tensor:
        a = self.sharpness if sharpness is None else sharpness
        return a * self.shape(a * u)

    def soft_step(self, u: Tensor) -> Tensor:
        return self.primitive(self.sharpness * u)


def _positive(surrogate: Surrogate, name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{type(surrogate).__name__}: {name} = {value} must be a finite number above 0")


@dataclass(frozen=True)
@checked_fields
class Triangle(Stretched):
    """``max(0, width - |u|) / width^2``; 0 outside ``|u| < width``.

    >>> sg.surrogates.Triangle(width=0.5).derivative(torch.tensor([-1.0, 0.0, 0.25]))
    tensor([0., 2., 1.])
    """

    width: float = 1.0
    """Width, in units of the potential."""

    def __post_init__(self) -> None:
        _positive(self, "width", self.width)

    @property
    def sharpness(self) -> float:  # type: ignore[override]
        return 1.0 / self.width

    def shape(self, z: Tensor) -> Tensor:
        return (1.0 - z.abs()).clamp(min=0.0)

    def primitive(self, z: Tensor) -> Tensor:
        z = z.clamp(-1.0, 1.0)
        return 0.5 + z - 0.5 * z * z.abs()


@dataclass(frozen=True)
@checked_fields
class Atan(Stretched):
    """``(slope / 2) / (1 + (pi slope u / 2)^2)``.

    >>> sg.surrogates.Atan(slope=8.0).derivative(torch.zeros(1))
    tensor([4.])
    """

    slope: float = 2.0
    """Slope: the larger, the narrower."""

    def __post_init__(self) -> None:
        _positive(self, "slope", self.slope)

    @property
    def sharpness(self) -> float:  # type: ignore[override]
        return self.slope

    def shape(self, z: Tensor) -> Tensor:
        scaled = (0.5 * math.pi) * z
        return 0.5 / (1.0 + scaled * scaled)

    def primitive(self, z: Tensor) -> Tensor:
        return torch.atan((0.5 * math.pi) * z) / math.pi + 0.5


@dataclass(frozen=True)
@checked_fields
class Sigmoid(Stretched):
    """``slope s (1 - s)`` with ``s = 1 / (1 + exp(-slope u))``.

    >>> sg.surrogates.Sigmoid(slope=4.0).derivative(torch.zeros(1))
    tensor([1.])
    """

    slope: float = 4.0
    """Slope: the larger, the narrower."""

    def __post_init__(self) -> None:
        _positive(self, "slope", self.slope)

    @property
    def sharpness(self) -> float:  # type: ignore[override]
        return self.slope

    def shape(self, z: Tensor) -> Tensor:
        s = torch.sigmoid(z)
        return s * (1.0 - s)

    def primitive(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)


@dataclass(frozen=True)
@checked_fields
class Gaussian(Stretched):
    """The normal density of standard deviation ``sigma``.

    It is the exact derivative of the firing probability under noise of that standard deviation.

    >>> sg.surrogates.Gaussian(sigma=0.5).derivative(torch.zeros(1))
    tensor([0.7979])
    """

    sigma: float = 0.5
    """Standard deviation, in units of the potential."""

    def __post_init__(self) -> None:
        _positive(self, "sigma", self.sigma)

    @property
    def sharpness(self) -> float:  # type: ignore[override]
        return 1.0 / self.sigma

    def shape(self, z: Tensor) -> Tensor:
        return torch.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)

    def primitive(self, z: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.erf(z / math.sqrt(2.0)))


@dataclass(frozen=True)
@checked_fields
class Rectangle(Stretched):
    """``1 / width`` where ``|u| < width / 2``, else 0.

    >>> sg.surrogates.Rectangle(width=0.5).derivative(torch.tensor([-1.0, 0.0, 0.2]))
    tensor([0., 2., 2.])
    """

    width: float = 1.0
    """Width, in units of the potential."""

    def __post_init__(self) -> None:
        _positive(self, "width", self.width)

    @property
    def sharpness(self) -> float:  # type: ignore[override]
        return 1.0 / self.width

    def shape(self, z: Tensor) -> Tensor:
        return (z.abs() < 0.5).to(z.dtype)

    def primitive(self, z: Tensor) -> Tensor:
        return (z + 0.5).clamp(0.0, 1.0)


@dataclass(frozen=True)
@checked_fields
class Exponential(Surrogate):
    """``height exp(-slope |u|)``.

    >>> sg.surrogates.Exponential(slope=2.0).derivative(torch.zeros(1))
    tensor([1.])
    """

    slope: float = 2.0
    """Slope: the larger, the narrower."""
    height: float = 1.0
    """Value at the threshold."""

    @property
    def sharpness(self) -> float:  # type: ignore[override]
        return self.slope

    def __post_init__(self) -> None:
        _positive(self, "slope", self.slope)
        _positive(self, "height", self.height)

    def derivative(self, u: Tensor, sharpness: Tensor | None = None) -> Tensor:
        return self.height * torch.exp(-(self.slope if sharpness is None else sharpness) * u.abs())

    def soft_step(self, u: Tensor) -> Tensor:
        return 0.5 + self.height / self.slope * u.sign() * (1.0 - torch.exp(-self.slope * u.abs()))


@dataclass(frozen=True)
class StraightThrough(Surrogate):
    """1 everywhere: the backward pass ignores the step. It has no sharpness, so it uses none.

    >>> sg.surrogates.StraightThrough().derivative(torch.tensor([-1.0, 0.0]))
    tensor([1., 1.])
    """

    def derivative(self, u: Tensor, sharpness: Tensor | None = None) -> Tensor:
        return torch.ones_like(u)

    def soft_step(self, u: Tensor) -> Tensor:
        return u + 0.5
