"""BPDA on honest models that answer otherwise in training mode, or update what they hold while they run."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from narrow import as_a
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import spikeguard as sg
from spikeguard.gradients import BPDA, Own
from spikeguard.losses import margin
from spikeguard.surrogates import Atan


class SideHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.side = nn.Linear(16, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x.flatten(1)))

    def forward(self, x: Tensor) -> object:
        z = self.features(x)
        return (self.head(z), self.side(z)) if self.training else self.head(z)


class EveryStep(SideHead):
    def forward(self, x: Tensor) -> object:
        steps = torch.stack([k * self.head(self.features(x)) for k in (1, 2, 3)])
        return steps if self.training else steps.mean(0)


class GivesLoss(SideHead):
    def forward(self, x: Tensor) -> object:
        logits = self.head(self.features(x))
        return logits.mean() if self.training else logits


class LearnedThreshold(SideHead):
    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> object:
        self.threshold.data.clamp_(min=0.03)
        with torch.no_grad():
            self.threshold.clamp_(max=3.0)
        return self.head((self.features(x) - self.threshold).relu())


class PowerIteration(SideHead):
    """Updates a buffer with ``out=`` in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("u", torch.ones(8))
        self.u: Tensor

    def forward(self, x: Tensor) -> object:
        with torch.no_grad():
            torch.mv(self.body.weight @ self.body.weight.t(), self.u.clone(), out=self.u)
            self.u.div_(self.u.norm())
        return self.head(self.features(x) / self.u.norm())


class Spectral(SideHead):
    def __init__(self) -> None:
        super().__init__()
        self.body = as_a(nn.Linear, spectral_norm(self.body))


@pytest.mark.parametrize("make", [SideHead, EveryStep, GivesLoss, LearnedThreshold, PowerIteration, Spectral])
def test_opened_gradients_of_an_honest_model_are_its_own(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x, y = make().eval(), torch.rand(4, 1, 4, 4), torch.arange(4)
    for estimator in (BPDA(), BPDA(Atan(4.0))):
        with estimator.open(model) as opened, Own().open(model) as own:
            got, expected = opened(x, y, margin)[0], own(x, y, margin)[0]
        assert float(F.cosine_similarity(got.flatten(1), expected.flatten(1)).min()) > 0.99
    assert all(p.is_leaf and p.requires_grad for p in model.parameters() if p.dim() != 8)
    assert all(b.is_leaf and not b.requires_grad for b in model.buffers())


class AddsTime(nn.Module):
    """Adds a dimension of time in place, as a widely copied ResNet-19 for spiking networks does."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.unsqueeze_(1)
        steps = x.repeat(1, 2, 1, 1, 1)
        return torch.stack([self.map(steps[:, t].flatten(1)) for t in range(2)]).mean(0)


@pytest.mark.parametrize("attack", [sg.pgd, sg.square, sg.sapgd])
def test_a_model_may_change_the_shape_of_its_input(attack: Callable[..., object]) -> None:
    x, y = torch.rand(4, 1, 4, 4), torch.arange(4)
    images = x.clone()
    settings = {"queries": 3} if attack is sg.square else {"steps": 2}
    attack(AddsTime().eval(), x, y, sg.Linf(8 / 255), **settings)
    assert torch.equal(x, images)
