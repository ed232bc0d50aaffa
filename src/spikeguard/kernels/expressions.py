"""The derivatives of surrogates in C++, for ``neuron.cpp``: of vectors ``u`` and ``a``, the sharpness."""

from __future__ import annotations

from collections.abc import Callable

from spikeguard.surrogates import (
    Atan,
    Exponential,
    Gaussian,
    Rectangle,
    Sigmoid,
    StraightThrough,
    Surrogate,
    Triangle,
)


def _exponential(surrogate: Surrogate) -> str:
    assert isinstance(surrogate, Exponential)
    return f"(float){float(surrogate.height)!r} * exp(-a * abs(u))"


_EXPRESSIONS: dict[type[Surrogate], str | Callable[[Surrogate], str]] = {
    Triangle: "a * max0(1.0f - abs(a * u))",
    Atan: "a * (0.5f / (1.0f + (1.57079633f * (a * u)) * (1.57079633f * (a * u))))",
    Sigmoid: "a * [](V s) { return s * (1.0f - s); }(1.0f / (1.0f + exp(-(a * u))))",
    Gaussian: "a * (exp(-0.5f * (a * u) * (a * u)) * 0.398942280f)",
    Rectangle: "choose(abs(a * u) < 0.5f, a, V{})",
    Exponential: _exponential,
    StraightThrough: "all(1.0f)",
}


def expression(surrogate: Surrogate) -> str | None:
    """The derivative of a surrogate in C++, None if it has none.

    A class defined elsewhere can state its own as ``native``. A subclass may have another formula, so it
    does not inherit one.
    """
    kernel = surrogate.kernel()
    found = _EXPRESSIONS.get(type(kernel)) or vars(type(kernel)).get("native")
    return found(kernel) if callable(found) else found
