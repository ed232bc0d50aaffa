"""What the cases share: a small model, images it has never seen, and what every refusal has to look like."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.errors import AttackError, UserError

LINF = sg.Linf(0.03)
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = 0.3 * torch.randn(4, 64, generator=GENERATOR)
X = torch.rand(12, 1, 8, 8, generator=GENERATOR)
ATTACKS: dict[str, Callable[..., object]] = {
    "pgd": lambda *a: sg.pgd(*a, LINF, steps=2, restarts=1),
    "square": lambda *a: sg.square(*a, LINF, queries=3),
    "fab": lambda *a: sg.fab(*a, LINF, steps=1, targets=1),
    "cw": lambda *a: sg.cw(*a, sg.L2(0.3), steps=1, searches=1),
    "rays": lambda *a: sg.rays(*a, LINF, queries=3),
    "targeted": lambda *a: sg.targeted(*a, LINF, rule="pgd", steps=1, targets=1),
}


def net() -> nn.Sequential:
    """A linear model on 8x8 images with four classes, always the same."""
    made = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False, dtype=torch.float32)).eval()
    with torch.no_grad():
        made[1].weight.copy_(WEIGHT)
    return made


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
    assert type(error.value) in (UserError, AttackError)
    for word in words:
        assert word in line, line
    return line
