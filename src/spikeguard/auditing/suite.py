"""Attacks as data: which members a suite has, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from spikeguard.attacks import Attacked, fgsm, pgd, sapgd, square
from spikeguard.gradients import Model, assg, swap
from spikeguard.surrogates import Atan, StraightThrough, Triangle
from spikeguard.threat import Threat

Attack = Callable[[Model, Tensor, Tensor, Threat, int, Tensor], Attacked]


@dataclass(frozen=True)
class Member:
    """One attack. ``on_all``: it meets every sample, so that it has an accuracy of its own; else only those that still stand."""

    name: str
    run: Attack
    on_all: bool = False
    own_surrogate: bool = False


def _pgd(restarts: int, surrogate: Atan | Triangle | StraightThrough | None = None) -> Attack:
    def run(model: Model, x: Tensor, y: Tensor, threat: Threat, seed: int, index: Tensor) -> Attacked:
        gradient = None if surrogate is None else swap(surrogate)
        return pgd(model, x, y, threat, steps=20, restarts=restarts, gradient=gradient, seed=seed, index=index)

    return run


DEMO = (
    Member("FGSM", lambda m, x, y, t, seed, index: fgsm(m, x, y, t), on_all=True, own_surrogate=True),
    Member("PGD-20", _pgd(2), on_all=True, own_surrogate=True),
    Member("PGD-20 Atan(8)", _pgd(1, Atan(8.0))),
    Member("PGD-20 Triangle(2)", _pgd(1, Triangle(2.0))),
    Member("PGD-20 straight-through", _pgd(1, StraightThrough())),
    Member(
        "SA-PGD-20 ASSG",
        lambda m, x, y, t, seed, index: sapgd(m, x, y, t, steps=20, gradient=assg(), seed=seed, index=index),
    ),
    Member("Square-200", lambda m, x, y, t, seed, index: square(m, x, y, t, queries=200, seed=seed, index=index)),
)
