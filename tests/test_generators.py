"""Generators that a model keeps for itself."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from spikeguard.random.generators import private_generators
from spikeguard.wrapping.repeatable import seeded

Kept = Any  # a generator of torch, numpy or Python
KEPT = {
    "torch": (torch.Generator, lambda g: torch.rand(3, generator=g).tolist()),
    "numpy": (lambda: np.random.default_rng(1), lambda g: g.random(3).tolist()),
    "old numpy": (lambda: np.random.RandomState(1), lambda g: g.rand(3).tolist()),
    "python": (lambda: random.Random(1), lambda g: [g.random() for _ in range(3)]),
}


@pytest.mark.parametrize(("make", "draw"), KEPT.values(), ids=KEPT)
def test_they_are_found_seeded_and_restored(
    make: Callable[[], Kept], draw: Callable[[Kept], list[float]]
) -> None:
    class Inner(nn.Identity):
        def __init__(self) -> None:
            super().__init__()
            self.kept = make()

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

    model = Holder()
    own = model.inner.kept
    assert [g is own for g in private_generators(model)] == [True]
    assert any(g is own for g in private_generators(lambda x: x + draw(own)[0]))
    with seeded(model, 7):
        first = draw(own)
    with seeded(model, 7):
        again = draw(own)
    with seeded(model, 8):
        other = draw(own)
    assert first == again != other
    assert draw(own) == draw(make()), "its own sequence goes on as if nothing had happened"
