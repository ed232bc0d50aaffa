"""Autograd that is switched off around a call, re-entrant checkpoints, gradients that exist already."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from narrow import as_a, present
from strangers import ATTACKS, LINF, X, Y, net, pgd, refused
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import spikeguard as sg

NET = net()
REENTRANT = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
"""torch says so of every forward pass without a gradient."""


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(before)


Around = Callable[[], AbstractContextManager[object]]
AROUND: dict[str, Around] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled": switched_off,
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_work_where_autograd_is_switched_off(around: str, attack: str) -> None:
    with AROUND[around]():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = ATTACKS[attack](NET, X.clone(), Y.clone())
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert torch.equal(found.x, ATTACKS[attack](NET, X, Y).x)


@pytest.mark.parametrize("around", AROUND)
def test_audits_work_where_autograd_is_switched_off(around: str, short_suite: None) -> None:
    with AROUND[around]():
        result = sg.audit(NET, X.clone(), Y.clone(), LINF, effort="quick")
    assert result.record.first_by == sg.audit(NET, X, Y, LINF, effort="quick").record.first_by


def test_tensors_made_in_inference_mode_are_taken() -> None:
    with torch.inference_mode():
        x, y, eps = X.clone(), Y.clone(), torch.full((12,), 0.03)
    assert torch.equal(pgd(NET, x, y, sg.Linf(eps)), pgd(NET))


def test_a_model_made_in_inference_mode_is_one_line() -> None:
    with torch.inference_mode():
        made = net()
    for call in (lambda: pgd(made), lambda: sg.audit(made, X, Y, LINF, effort="quick")):
        refused(call, "inference_mode", "outside")


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_model_that_switches_autograd_off_itself_has_no_gradient(
    guard: Callable[[], AbstractContextManager[object]],
) -> None:
    def model(x: Tensor) -> Tensor:
        with guard():
            return as_a(Tensor, NET(x))

    refused(lambda: pgd(model), "no gradient reaches the input")
    assert torch.equal(ATTACKS["square"](model, X, Y).broken, ATTACKS["square"](NET, X, Y).broken)


class Net(nn.Module):
    """A block that is computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.block = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.head, self.reentrant = nn.Linear(16, 4), reentrant
        for p in self.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(checkpoint(self.block, x, use_reentrant=self.reentrant))
        return scores


@REENTRANT
def test_a_reentrant_checkpoint_gives_the_numbers_of_its_twin(short_suite: None) -> None:
    twin, model = Net(False).eval(), Net(True).eval()
    y = twin(X).argmax(1)
    one, other = (sg.pgd(m, X, y, LINF, steps=5) for m in (twin, model))
    assert torch.equal(one.x, other.x)
    assert (one.forwards, one.backwards) == (other.forwards, other.backwards)
    audits = [sg.audit(m, X, y, LINF, effort="quick") for m in (twin, model)]
    assert audits[0].record.first_by == audits[1].record.first_by
    assert [f.id for f in audits[0].flags] == [f.id for f in audits[1].flags]


@REENTRANT
@pytest.mark.parametrize("plain_function", [False, True])
def test_a_reentrant_checkpoint_leaves_no_gradient_behind(plain_function: bool) -> None:
    inner = Net(True).eval()
    model = (lambda x: inner(x)) if plain_function else inner
    kept = torch.full_like(inner.head.weight, 7.0)
    inner.head.weight.grad = kept
    sg.pgd(model, X, inner(X).argmax(1), LINF, steps=2)
    assert inner.head.weight.grad is kept
    assert bool((kept == 7.0).all())
    assert all(p.grad is None for p in inner.parameters() if p is not inner.head.weight)


def test_an_attack_leaves_gradients_of_model_and_images_alone() -> None:
    model, x = net(), X.clone().requires_grad_()
    model(x).sum().backward()
    weight = as_a(nn.Linear, model[1]).weight
    before = present(weight.grad).clone(), present(x.grad).clone()
    pgd(model, x)
    assert torch.equal(present(weight.grad), before[0])
    assert torch.equal(present(x.grad), before[1])


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_default_device_of_torch_is_no_part_of_an_attack(attack: str) -> None:
    plain = ATTACKS[attack](NET, X, Y).x
    torch.set_default_device("meta")
    try:
        assert torch.equal(ATTACKS[attack](NET, X, Y).x, plain)
    finally:
        torch.set_default_device(None)
