"""Adversarial weight perturbation: where the gradient is taken, and that nothing else moves."""

import pytest
import torch
import torch.nn.functional as F

from spikeguard.defenses import AWP, Step
from spikeguard.defenses.parameters import matrices
from spikeguard.errors import UserError


def test_weights_move_by_gamma_along_their_gradient_and_come_back(step: Step) -> None:
    net = step.net
    before = {name: value.clone() for name, value in net.state_dict().items()}
    weights = [m.weight for m in matrices(net)]
    gradients = torch.autograd.grad(F.cross_entropy(net(step.x), step.y), weights)
    net.load_state_dict(before)
    hooks = AWP(gamma=0.1).start(net)
    hooks.complete(step)
    for (name, weight), gradient in zip(
        ((n, p) for n, p in net.named_parameters() if p.dim() > 1), gradients, strict=True
    ):
        moved = (weight.detach() - before[name]).flatten()
        assert float(moved.norm()) == pytest.approx(0.1 * float(before[name].norm()), rel=1e-3)
        assert float(F.cosine_similarity(moved, gradient.flatten(), dim=0)) > 0.999
    hooks.gradients(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_loss_is_higher_at_the_perturbed_weights(step: Step) -> None:
    before = F.cross_entropy(step.net(step.x), step.y)
    AWP(gamma=0.02).start(step.net).complete(step)
    assert float(F.cross_entropy(step.net(step.x), step.y).detach()) > float(before.detach())


def test_before_its_begin_it_does_nothing(step: Step) -> None:
    before = [m.weight.clone() for m in matrices(step.net)]
    hooks = AWP(begin=0.75).start(step.net)  # the step is half-way
    hooks.complete(step)
    hooks.gradients(step.net)
    assert all(torch.equal(m.weight, w) for m, w in zip(matrices(step.net), before, strict=True))
    with pytest.raises(UserError, match="AWP: gamma"):
        AWP(gamma=0.0)
