"""Intervals and paired tests of shares."""

from __future__ import annotations

import math

COVERS = "the choice of images, not an attack that fails"
"""What the interval of an accuracy under attack covers: pages and tables say it beside their intervals."""


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson score), as fractions."""
    if total == 0:
        return 0.0, 1.0
    p, n = right / total, float(total)
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


ALPHA = 0.01  # from this p on, a paired test says nothing


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of a paired test.

    Samples where only one of two outcomes holds fall on either side with equal chance.
    """
    total, low = only_first + only_second, min(only_first, only_second)
    tail: float = sum(math.comb(total, k) for k in range(low + 1)) / 2**total
    return min(1.0, 2 * tail)


def share_above(count: int, total: int) -> float:
    """One-sided 95 % lower bound of a share (exact, Clopper and Pearson)."""
    if count == 0:
        return 0.0
    low, high = 0.0, count / total
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_least(count, total, middle) < 0.05 else (low, middle)
    return low


def _at_least(count: int, total: int, p: float) -> float:
    """P(X >= count) for a binomial X."""
    if not 0 < p < 1:
        return float(p >= 1)
    ways = math.lgamma(total + 1)
    logs = (
        ways
        - math.lgamma(k + 1)
        - math.lgamma(total - k + 1)
        + k * math.log(p)
        + (total - k) * math.log1p(-p)
        for k in range(count)
    )
    return 1.0 - math.fsum(math.exp(v) for v in logs)


STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t for 1 to 10 degrees of freedom; beyond, that of 10.

    >>> from spikeguard.stats import student
    >>> student(2)
    4.303
    """
    return STUDENT[min(freedom, len(STUDENT)) - 1]
