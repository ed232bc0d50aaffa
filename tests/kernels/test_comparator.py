"""What foreign neurons compare and their penalty: the C++ pass and torch give the same."""

from typing import Literal

import pytest
import torch
from narrow import present
from torch import Tensor

from spikeguard.kernels import compiler, cpp_build, gaussian
from spikeguard.kernels.comparator import compared
from spikeguard.kernels.mode import Band
from spikeguard.random import draws


def both(
    u: Tensor, noise: Tensor | None, band: Band, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Input of the comparator, penalty, and a gradient of both: in C++, then by torch."""
    found = []
    for size in (1, 2**62):
        monkeypatch.setattr(compiler, "WORTHWHILE", size)
        leaf = u.clone(memory_format=torch.preserve_format).requires_grad_()
        w, penalty = compared(leaf, noise, band)
        loss = (w * torch.arange(w.numel()).view_as(w)).sum() + 3e3 * present(penalty)
        found.append((w.detach(), present(penalty).detach(), torch.autograd.grad(loss, leaf)[0]))
    return found


@pytest.mark.parametrize("side", ["both", "below"])
@pytest.mark.parametrize("noisy", [True, False])
def test_one_pass_gives_what_torch_gives(
    side: Literal["both", "below"], noisy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    u = torch.randn(5, 3, 7)
    u[0, 0, :4] = torch.tensor([0.0, 0.5, -0.5, float("inf")])  # ties
    noise = 0.1 * torch.randn(5, 3, 7) if noisy else None
    fast, slow = both(u, noise, Band(0.5, side), monkeypatch)
    assert torch.equal(fast[0], slow[0])
    assert torch.equal(fast[0], u if noise is None else u + noise)
    assert float(fast[1]) == pytest.approx(float(slow[1]), rel=1e-5)
    inside = (u.abs() < 0.5) & (u < 0 if side == "below" else True)
    assert float(fast[1]) == pytest.approx(
        float(((0.5 - u.abs()) * inside)[inside].sum() / u.numel()), rel=1e-5
    )
    assert torch.allclose(fast[2], slow[2], rtol=1e-6, atol=1e-6)
    moved = torch.arange(u.numel()).view_as(u) - fast[2]
    assert torch.allclose(moved, 3e3 / u.numel() * u.sign() * inside, rtol=1e-3, atol=1e-4)


def test_other_layouts_and_types_are_computed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(2, 3, 4, 4)
    for u in (
        images.to(memory_format=torch.channels_last),
        images.transpose(0, 1),
        images.double(),
        images.bfloat16(),
    ):
        for noise in (None, (0.1 * torch.randn(u.shape)).to(u.dtype)):
            fast, slow = both(u, noise, Band(0.5), monkeypatch)
            for a, b in zip(fast, slow, strict=True):
                assert a.dtype == b.dtype
                assert torch.allclose(a, b, rtol=1e-5)


def test_what_is_no_number_stays_in_the_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    u = torch.tensor([[0.3, float("nan"), 2.0]])
    for side in ("both", "below"):
        for _, penalty, _ in both(u, None, Band(0.5, side), monkeypatch):
            assert penalty.isnan()


def test_gradients_of_one_output_alone_and_second_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "WORTHWHILE", 1)
    u, noise = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    w, penalty = compared(u, noise, Band(0.5))
    assert torch.equal(torch.autograd.grad(w.sum(), u, retain_graph=True)[0], torch.ones(4, 9))
    inside = (u.detach().abs() < 0.5) * -u.detach().sign() / 36
    assert torch.allclose(torch.autograd.grad(present(penalty), u)[0], inside)
    w, penalty = compared(u, noise, Band(0.5))
    (g,) = torch.autograd.grad((w**2).sum() + present(penalty), u, create_graph=True)
    assert torch.allclose(torch.autograd.grad(g.sum(), u)[0], torch.full((4, 9), 2.0))


def test_noise_of_a_deviation_is_the_draw_times_it(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = draws.step_keys(3, torch.arange(4), 3)
    for size in (1, 2**62):
        monkeypatch.setattr(compiler, "WORTHWHILE", size)
        assert torch.equal(gaussian.normal(keys, 50, 3, 0.3), gaussian.normal(keys, 50, 3).mul_(0.3))


def test_without_a_compiler_it_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **flags: object) -> object:
        raise cpp_build.BuildError("no")

    monkeypatch.setattr(compiler, "WORTHWHILE", 1)
    monkeypatch.setattr(cpp_build, "function", fail)
    u = torch.tensor([[0.3, -0.2]], requires_grad=True)
    w, penalty = compared(u, torch.ones(1, 2), Band(0.5))
    assert torch.equal(w, u + 1)
    assert float(present(penalty).detach()) == pytest.approx(0.25)
    assert torch.autograd.grad(present(penalty), u)[0].tolist() == [[-0.5, 0.5]]
