"""APGD and l1-APGD step by step against plain loops written from their papers; the losses they raise."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.attacks import Attacked
from spikeguard.attacks.apgd import MomentumStep, checkpoints
from spikeguard.attacks.batch import Batch
from spikeguard.attacks.loop import Rule
from spikeguard.attacks.sparse import SparseStep
from spikeguard.errors import UserError
from spikeguard.gradients import Own
from spikeguard.losses import Targeted, ce, dlr, margin
from spikeguard.networks.classifier import Classifier


def wavy(x: Tensor) -> Tensor:
    """A loss per sample with many hills, so that steps are halved and best points are returned to."""
    flat = x.flatten(1)
    weights = torch.linspace(3, 40, flat.shape[1], dtype=x.dtype)
    return (torch.sin(weights * flat) + flat).sum(1)


def loss_and_gradient(at: list[float]) -> tuple[float, list[float]]:
    """Of ``wavy`` at one sample."""
    leaf = torch.tensor([at], dtype=torch.float64, requires_grad=True)
    value = wavy(leaf).sum()
    return float(value.detach()), torch.autograd.grad(value, leaf)[0][0].tolist()


def walked(rule: Rule, start: Tensor, x: Tensor, threat: sg.Linf | sg.L1, steps: int) -> list[Tensor]:
    """Every point that a step rule comes through on ``wavy``."""
    path = [start]
    for k in range(steps):
        leaf = path[-1].clone().requires_grad_()
        value = wavy(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        path.append(threat.project(rule.step(k, path[-1], gradient, value.detach()), x))
    return path


def batch_of(x: Tensor, threat: sg.Linf | sg.L1) -> Batch:
    """Step rules need no labels."""
    return Batch.of(x, torch.zeros(len(x), dtype=torch.int64), threat)


def by_hand(x: list[float], start: list[float], eps: float, steps: int) -> list[list[float]]:
    """One sample, pixel by pixel, from the description in the paper."""

    def project(at: list[float]) -> list[float]:
        return [min(max(min(max(a, b - eps), b + eps), 0.0), 1.0) for a, b in zip(at, x, strict=True)]

    here, before, eta = start, start, 2 * eps
    loss, gradient = loss_and_gradient(here)
    best, best_loss, best_gradient = here, loss, gradient
    losses, path = [loss], [here]
    gap, checked_at, halved_last, best_at_check = max(int(0.22 * steps), 1), 0, True, loss
    following = gap
    for k in range(steps):
        if k == following:
            rises = sum(losses[i] > losses[i - 1] for i in range(checked_at + 1, k + 1))
            halve = rises <= 0.75 * (k - checked_at) or (not halved_last and best_loss <= best_at_check)
            if halve:
                eta, here, gradient = eta / 2, best, best_gradient
            halved_last, best_at_check, checked_at = halve, best_loss, k
            gap = max(gap - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            following += gap
        z = project([a + eta * ((g > 0) - (g < 0)) for a, g in zip(here, gradient, strict=True)])
        a = 0.75 if k else 1.0
        moved = project(
            [h + a * (t - h) + (1 - a) * (h - b) for h, t, b in zip(here, z, before, strict=True)]
        )
        before, here = here, moved
        loss, gradient = loss_and_gradient(here)
        losses.append(loss)
        path.append(here)
        if loss > best_loss:
            best, best_loss, best_gradient = here, loss, gradient
    return path


@pytest.mark.parametrize("steps", [1, 7, 40, 100])
def test_every_step_is_that_of_the_paper(steps: int) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(6, 5, generator=generator, dtype=torch.float64)
    threat = sg.Linf(0.3)
    start = threat.project(x + 0.3 * (2 * torch.rand(6, 5, generator=generator, dtype=torch.float64) - 1), x)
    rule = MomentumStep(batch_of(x, threat), steps)
    path = walked(rule, start, x, threat, steps)
    if steps >= 40:
        assert (rule.eta < 0.6).any(), "no step was ever halved: the test shows nothing"
    for sample in range(6):
        expected = torch.tensor(
            by_hand(x[sample].tolist(), start[sample].tolist(), 0.3, steps), dtype=torch.float64
        )
        torch.testing.assert_close(torch.stack([p[sample] for p in path]), expected, rtol=0, atol=1e-12)


def test_checkpoints_are_those_of_the_paper() -> None:
    """``p_1 = 0.22``, ``p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)``, after ``ceil(p_j n)`` steps."""
    before, at, shares = 0, 22, []
    while at < 100:
        shares.append(at)
        before, at = at, at + max(at - before - 3, 6)
    for steps in (100, 200, 1000):  # where nothing is rounded
        assert sorted(checkpoints(steps)) == [share * steps // 100 for share in shares]


def test_a_sample_does_not_notice_that_others_leave(tiny: Classifier) -> None:
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = tiny(x).argmax(1)
    together = sg.apgd(tiny, x, y, sg.Linf(0.004), steps=12, index=torch.arange(12))
    assert 0 < int(together.broken.sum()) < 12
    for rows in ([0], [3, 7], list(range(6, 12))):
        apart = sg.apgd(tiny, x[rows], y[rows], sg.Linf(0.004), steps=12, index=torch.tensor(rows))
        assert torch.equal(apart.broken, together.broken[rows])
        torch.testing.assert_close(apart.x, together.x[rows], rtol=0, atol=1e-6)


def test_losses_are_their_formulas_and_free_of_scale() -> None:
    logits = torch.tensor([[2.0, 5.0, 1.0, 0.0, 4.0], [9.0, 1.0, 3.0, 2.0, 5.0]], dtype=torch.float64)
    y = torch.tensor([4, 0])
    torch.testing.assert_close(margin(logits, y), torch.tensor([1.0, -4.0], dtype=torch.float64))
    torch.testing.assert_close(dlr(logits, y), torch.tensor([1 / 3, -4 / 6], dtype=torch.float64))
    torch.testing.assert_close(dlr(1000 * logits, y), dlr(logits, y))
    towards = Targeted("dlr", torch.tensor([2, 4]))
    torch.testing.assert_close(towards(logits, y), torch.tensor([-3 / 3.5, -4 / 6.5], dtype=torch.float64))
    second = towards.select(torch.tensor([1]))
    torch.testing.assert_close(second(logits[1:], y[1:]), torch.tensor([-4 / 6.5], dtype=torch.float64))
    for name, loss, classes in (("dlr", dlr, 2), ("targeted dlr", Targeted("dlr", torch.tensor([1])), 3)):
        with pytest.raises(UserError, match=f"'?{name}'? needs at least"):
            loss(torch.zeros(1, classes), torch.tensor([0]))


class Saturated(nn.Module):
    """Cross-entropy has no gradient left in float32: its logits are ten million times what they should be."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 1e7 * self.flat(x.flatten(1))
        return logits


def test_dlr_breaks_a_model_whose_cross_entropy_is_saturated() -> None:
    torch.manual_seed(0)
    model, x = Saturated(), 0.3 + 0.4 * torch.rand(100, 1, 4, 4)
    with torch.no_grad():
        model.flat.bias.sub_(model.flat(x.flatten(1)).mean(0))
    y = model(x).argmax(1)
    assert float(torch.autograd.grad(ce(model(x.requires_grad_()), y).sum(), x)[0].abs().max()) == 0, (
        "not saturated: the test shows nothing"
    )
    x = x.detach()
    weight = model.flat.weight.detach()
    scores = model.flat(x.flatten(1)).detach()
    ahead = scores.gather(1, y[:, None]) - scores
    reach = 0.015 * (weight[y][:, None] - weight).abs().sum(2)
    closed = ((ahead < reach) & (torch.arange(5) != y[:, None])).any(
        1
    )  # some class can be reached within the ball
    assert 20 < int(closed.sum()) < 80
    got = sg.apgd_targeted(model, x, y, sg.Linf(0.015), steps=20, targets=4)
    assert torch.equal(got.broken, closed)
    assert sg.apgd(model, x, y, sg.Linf(0.015), steps=20, loss="dlr").broken.sum() >= 0.9 * closed.sum()
    assert sg.pgd(model, x, y, sg.Linf(0.015), steps=20, restarts=1, start=False).broken.sum() == 0


def by_hand_sparse(x: list[float], start: list[float], eps: float, steps: int) -> list[list[float]]:
    """l1-APGD's steps for one sample, entry by entry."""
    here, path, count, moved_before, eta = start, [start], 0.2 * len(x), len(x), eps
    best, best_loss, best_gradient = start, -math.inf, start
    for k in range(steps):
        loss, gradient = loss_and_gradient(here)
        if loss > best_loss:
            best, best_loss, best_gradient = here, loss, gradient
        if k and k % max(math.ceil(0.04 * steps), 1) == 0:
            moved = sum(abs(a - b) > 1e-5 for a, b in zip(best, x, strict=True))
            if moved >= 0.95 * moved_before:
                eta = max(eta / 1.5, eps / 10)
            else:
                eta, here, gradient = eps, best, best_gradient
            count, moved_before = moved / 1.5, moved
        open_ = [
            0.0 if (h <= 0 and g < 0) or (h >= 1 and g > 0) else g
            for h, g in zip(here, gradient, strict=True)
        ]
        ranked = sorted(range(len(x)), key=lambda i: -abs(open_[i]))[: max(round(count), 1)]
        signs = [(open_[i] > 0) - (open_[i] < 0) if i in ranked else 0 for i in range(len(x))]
        moved_to = [h + eta * s / max(sum(map(abs, signs)), 1) for h, s in zip(here, signs, strict=True)]
        here = (
            sg.L1(eps)
            .project(torch.tensor([moved_to], dtype=torch.float64), torch.tensor([x], dtype=torch.float64))[0]
            .tolist()
        )
        path.append(here)
    return path


@pytest.mark.parametrize("steps", [1, 30, 100])
def test_every_sparse_step_is_that_of_its_paper(steps: int) -> None:
    generator = torch.Generator().manual_seed(4)
    x = (1.4 * torch.rand(6, 12, generator=generator, dtype=torch.float64) - 0.2).clamp(
        0, 1
    )  # some at the border of the box
    threat = sg.L1(1.0)
    start = threat.project(x + 0.3 * torch.randn(6, 12, generator=generator, dtype=torch.float64), x)
    rule = SparseStep(batch_of(x, threat), steps)
    path = walked(rule, start, x, threat, steps)
    if steps > 1:
        assert (rule.eta < 1).any()
        assert len(rule.count.unique()) > 1, "as many pixels everywhere: the test shows nothing"
    for sample in range(6):
        expected = torch.tensor(
            by_hand_sparse(x[sample].tolist(), start[sample].tolist(), 1.0, steps), dtype=torch.float64
        )
        torch.testing.assert_close(torch.stack([p[sample] for p in path]), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("attack", [sg.apgd, sg.sapgd])
def test_under_l1_a_linear_model_falls_at_its_least_budget_and_not_below(
    attack: Callable[..., Attacked],
) -> None:
    """The least budget is known.

    Pixels move one after another, those of largest weight first, each as far as the box allows.
    """
    generator = torch.Generator().manual_seed(5)
    x = (2 * torch.rand(20, 1, 8, 8, generator=generator) - 0.5).clamp(
        0, 1
    )  # half of the pixels are black or white
    last = nn.Linear(64, 2)
    net = nn.Sequential(nn.Flatten(), last).eval()
    y = net(x).argmax(1)
    weight = (last.weight[1] - last.weight[0]).detach()
    least = []
    for image, label in zip(x.flatten(1), y, strict=True):
        up = weight if label == 0 else -weight  # moves along it fool the model
        need = -float(margin(net(image.view(1, 1, 8, 8)).detach(), label[None]))
        spent = 0.0
        for i in up.abs().argsort(descending=True):
            room = float(1 - image[i] if up[i] > 0 else image[i])
            used = min(room, need / float(up[i].abs()))
            spent, need = spent + used, need - used * float(up[i].abs())
            if need <= 1e-12:
                break
        least.append(spent)
    budgets = torch.tensor(least)
    assert bool(attack(net, x, y, sg.L1(1.05 * budgets), steps=100, gradient=Own()).broken.all())
    assert not bool(attack(net, x, y, sg.L1(0.98 * budgets), steps=100, gradient=Own()).broken.any())
