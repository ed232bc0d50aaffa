"""A paired test of two audits. No model is run."""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc
from statistics import pstdev

from spikeguard.auditing.merge import audits
from spikeguard.auditing.merge import merge as merge
from spikeguard.errors import UserError
from spikeguard.records.base import Record
from spikeguard.records.schema import AuditRecord
from spikeguard.stats import COVERS, mcnemar

Z = 1.959964  # 95 % of a normal distribution lie within as many standard deviations


@dataclass(frozen=True)
class Comparison:
    """The first model's robust accuracy less the second's, in points, with its 95 % interval.

    ``only_first``, ``only_second``: images that only one of the models gets right under attack. ``says``: all
    of it in one sentence.
    """

    difference: float
    interval: tuple[float, float]
    only_first: int
    only_second: int
    p: float
    says: str


def compare(a: Record, b: Record) -> Comparison:
    """A paired test of two models on the same images under the same threat and suite.

    It is McNemar's exact test; where a model is random and its images count by shares, a normal test of the
    mean difference.

    Raises:
        UserError: the records differ in images, threat or suite, or are no audits.
    """
    first, second = audits([a, b], 2)
    _check_same(first, second)
    pairs = list(zip(first.right, second.right, strict=True))
    only_first = sum(p > 0.5 >= q for p, q in pairs)
    only_second = sum(q > 0.5 >= p for p, q in pairs)
    difference = 100 * (first.worst_case.value - second.worst_case.value)
    deviation = 100 * pstdev([p - q for p, q in pairs]) / len(pairs) ** 0.5
    p = _p(first, second, (only_first, only_second), difference, deviation)
    low, high = difference - Z * deviation, difference + Z * deviation
    said = (
        f"{difference:+.1f} points ({low:+.1f} to {high:+.1f}), "
        f"{'significant' if p < 0.05 else 'not significant'} (p = {p:.3g}, {only_first} images against "
        f"{only_second}); the interval covers {COVERS}"
    )
    if unreliable := [name for name, r in (("first", first), ("second", second)) if r.errors]:
        said += f"; the {' and the '.join(unreliable)} record is flagged unreliable"
    return Comparison(difference, (low, high), only_first, only_second, p, said)


def _check_same(a: AuditRecord, b: AuditRecord) -> None:
    images = tuple(r.digests.images if r.digests else "unknown" for r in (a, b))
    for name, (one, two) in (
        ("images", images),
        ("threat", (a.threat, b.threat)),
        ("suite", (a.suite.hash, b.suite.hash)),
    ):
        if one != two:
            raise UserError(
                f"records differ in {name} ({one} and {two}): rows are compared only under the same one"
            )


def _p(a: AuditRecord, b: AuditRecord, only: tuple[int, int], difference: float, deviation: float) -> float:
    if not (a.random_model or b.random_model):
        return mcnemar(*only)
    return erfc(abs(difference) / deviation / 2**0.5) if deviation else float(not difference)
