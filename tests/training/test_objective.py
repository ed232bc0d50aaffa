"""The learning rate's schedule and the optimizer, against their formulas and a step by hand."""

import math

import pytest
import torch
from conftest import little_recipe

from spikeguard.data.images import Dataset
from spikeguard.networks.classifier import Classifier
from spikeguard.training.objective import optimizer, rate, task_loss
from spikeguard.training.trainer import Trainer


@pytest.mark.parametrize("warmup", [0.2, 0.5])
def test_learning_rate_rises_in_a_line_to_lr_at_the_end_of_the_warm_up(warmup: float) -> None:
    recipe = little_recipe(lr=0.4, warmup=warmup)
    quarters = [rate(recipe, warmup * k / 4) for k in range(5)]
    assert quarters == pytest.approx([0.02, 0.115, 0.21, 0.305, 0.4])
    assert max(rate(recipe, k / 1000) for k in range(1001)) == pytest.approx(0.4)


@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.5])
def test_learning_rate_falls_to_zero_by_half_a_cosine(warmup: float) -> None:
    recipe = little_recipe(lr=0.4, warmup=warmup)
    shares = (0.0, 1 / 3, 0.5, 2 / 3, 1.0)  # of what follows the warm-up
    falling = [rate(recipe, warmup + share * (1 - warmup)) for share in shares]
    assert falling == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0], abs=1e-12)
    assert rate(recipe, warmup + 0.25 * (1 - warmup)) == pytest.approx(0.2 * (1 + math.sqrt(0.5)))


def test_without_warm_up_training_starts_at_the_full_rate() -> None:
    assert rate(little_recipe(lr=0.3, warmup=0.0), 0.0) == pytest.approx(0.3)


def taken(net: Classifier, gradients: list[float], **changes: object) -> list[float]:
    """One weight after every step of the recipe's optimizer, from 0, for given gradients."""
    weight = net.head.weight
    with torch.no_grad():
        weight.zero_()
    chosen, path = optimizer(little_recipe(**changes), net), []
    for gradient in gradients:
        chosen.zero_grad()
        weight.grad = torch.full_like(weight, gradient)
        chosen.step()
        path.append(float(weight.detach()[0, 0]))
    return path


def test_steps_are_sgd_with_nesterov_momentum(tiny: Classifier) -> None:
    """Sutskever et al., ICML 2013, as PyTorch writes it: m <- mu m + g, w <- w - lr (g + mu m)."""
    gradients, m, w, path = [1.0, -0.5, 2.0, 0.0], 0.0, 0.0, []
    for g in gradients:
        m = 0.9 * m + g
        w -= 0.1 * (g + 0.9 * m)
        path.append(w)
    assert taken(tiny, gradients, lr=0.1, momentum=0.9, weight_decay=0.0) == pytest.approx(path, rel=1e-5)


def test_momentum_zero_is_plain_sgd(tiny: Classifier) -> None:
    path = taken(tiny, [1.0, -0.5, 2.0], lr=0.1, momentum=0.0, weight_decay=0.0)
    assert path == pytest.approx([-0.1, -0.05, -0.25], rel=1e-5)


def test_weight_decay_acts_on_matrices_only(tiny: Classifier) -> None:
    groups = optimizer(little_recipe(weight_decay=0.01), tiny).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for p in tiny.parameters() if p.dim() > 1}
    assert {group["weight_decay"] for group in groups} == {0.01, 0.0}


def test_one_cycle_falls_in_a_line() -> None:
    recipe = little_recipe(lr=0.4, warmup=0.2, schedule="one_cycle")
    assert [rate(recipe, d) for d in (0.1, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0.21, 0.4, 0.3, 0.2, 0.0])


@pytest.mark.parametrize("kind", ["mean", "per_step"])
def test_label_smoothing_spreads_a_share_of_the_target(kind: str) -> None:
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    y, chosen = torch.arange(5) % 3, logits if kind == "per_step" else logits[0]
    target = 0.7 * torch.eye(3)[y] + 0.1
    expected = -(target * chosen.log_softmax(-1)).sum(-1).mean()
    assert float(task_loss(kind, chosen, y, 0.3)) == pytest.approx(float(expected))
    assert torch.equal(task_loss(kind, chosen, y, 0.0), task_loss(kind, chosen, y))


def test_a_training_uses_the_smoothed_target(little_data: Dataset) -> None:
    """A step's loss is linear in the share: cross-entropy at 0, mean over all classes at 1."""
    x, y = little_data.train.pixels()[:20], little_data.train.y[:20]
    losses = []
    for share in (0.0, 0.4, 0.8):
        trainer = Trainer(little_recipe(label_smoothing=share), little_data, torch.device("cpu"))
        losses.append(trainer.step(x, y)["loss"])
    assert losses[1] - losses[0] == pytest.approx((losses[2] - losses[0]) / 2, rel=1e-3)
    assert abs(losses[2] - losses[0]) > 1e-3
