"""What the cases share: a small model, images it has never seen, and what every refusal has to look like."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.attacks.loop import Attacked
from spikeguard.errors import AttackError, ModelError, UserError

LINF = sg.Linf(0.03)
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = 0.3 * torch.randn(4, 64, generator=GENERATOR)
X = torch.rand(12, 1, 8, 8, generator=GENERATOR)
ATTACKS: dict[str, Callable[[Any, Any, Any], Attacked]] = {
    "pgd": lambda m, x, y: sg.pgd(m, x, y, LINF, steps=2, restarts=1),
    "square": lambda m, x, y: sg.square(m, x, y, LINF, queries=3),
    "fab": lambda m, x, y: sg.fab(m, x, y, LINF, steps=1, targets=1),
    "cw": lambda m, x, y: sg.cw(m, x, y, sg.L2(0.3), steps=1, searches=1),
    "rays": lambda m, x, y: sg.rays(m, x, y, LINF, queries=3),
    "targeted": lambda m, x, y: sg.targeted(m, x, y, LINF, rule="pgd", steps=1, targets=1),
}


def net() -> nn.Sequential:
    """A linear model on 8x8 images with four classes, always the same."""
    linear = nn.Linear(64, 4, bias=False, dtype=torch.float32)
    with torch.no_grad():
        linear.weight.copy_(WEIGHT)
    return nn.Sequential(nn.Flatten(), linear).eval()


Y = net()(X).argmax(1)


def pgd(model: Callable[..., object], x: object = X, y: object = Y, threat: object = LINF) -> Tensor:
    """Which images a short attack breaks."""
    return sg.pgd(model, x, y, threat, steps=3, restarts=1).broken  # type: ignore[arg-type]


def refused(call: Callable[[], object], *words: str) -> str:
    """The one line that a call ends in; it holds all the words."""
    with pytest.raises(UserError) as error:
        call()
    line = str(error.value)
    assert "\n" not in line
    assert type(error.value) in (UserError, AttackError, ModelError)
    for word in words:
        assert word in line, line
    return line
