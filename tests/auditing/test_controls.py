"""Controls and second looks on real models of sixteen pixels, each failing in one known way.

What the flags rest on is measured, not made up.
"""

from dataclasses import replace

import pytest
import torch
from narrow import present
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.auditing import controls, noise_control, second_attack
from spikeguard.auditing.audit import Audit
from spikeguard.auditing.raise_flags import from_controls
from spikeguard.auditing.run import begin
from spikeguard.auditing.task import Plan, Task
from spikeguard.networks.classifier import Classifier
from spikeguard.records.schema import ZeroBudget
from spikeguard.stats import ALPHA

X = 0.5 + 0.15 * torch.randn(80, 1, 4, 4, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
WEIGHT = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
BIAS = -(X.flatten(1) @ WEIGHT.T).mean(0)
EPS = 0.03


def scores(x: Tensor) -> Tensor:
    return x.flatten(1) @ WEIGHT.T + BIAS


Y = scores(X).argmax(1)


class Honest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return scores(x)


class Blind(nn.Module):
    """Sees only which pixels are bright: no estimator gets a gradient through a comparison."""

    def forward(self, x: Tensor) -> Tensor:
        return scores(torch.from_numpy((x.detach().numpy() * 64).round() / 64))


class Backwards(nn.Module):
    """Right scores, computed outside autograd, with a gradient that leads the other way."""

    def forward(self, x: Tensor) -> Tensor:
        true = torch.from_numpy(scores(x.detach()).numpy())
        return true - (scores(x) - scores(x).detach())


class Tiring(nn.Module):
    """From the fourth question on other classes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return scores(x) if self.calls < 4 else scores(x).roll(1, 1)


class Narrow(nn.Module):
    """A true gradient at the images themselves, a misleading one a little beside them."""

    def forward(self, x: Tensor) -> Tensor:
        at = (x.detach()[:, None] - X[None]).abs().flatten(2).amax(2).amin(1) < 1e-6
        lead = torch.where(at, 1.0, -1.0)[:, None]
        return scores(x).detach() + lead * (scores(x) - scores(x).detach())


def task(model: nn.Module, eps: float = EPS) -> Task:
    return Task(model.eval(), X, Y, sg.Linf(eps), (), plan=Plan(random=False))


def flags_of(model: nn.Module, eps: float = EPS) -> tuple[set[str], Audit]:
    got = sg.audit(model.eval(), X, Y, sg.Linf(eps), effort="quick")
    return {f.id for f in got.flags if f.level == "error"}, got


def test_an_honest_model_passes_all_controls() -> None:
    found = controls.run_controls(task(Honest()), "quick")
    assert from_controls(found) == []
    assert found.zero_budget == ZeroBudget(1.0, 1.0)
    assert found.full_budget.left <= found.full_budget.chance
    assert all(row.gradient > row.noise for row in found.against_noise)
    assert min(row.p for row in found.against_noise) < ALPHA
    accuracies = [accuracy for _, accuracy in present(found.curve).points]
    assert accuracies[0] == 1.0
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] < 0.2
    assert flags_of(Honest())[0] == set()


def test_a_model_without_any_gradient_is_not_broken_at_eps_1_no_better_than_noise_and_found() -> None:
    found = controls.run_controls(task(Blind()), "quick")
    assert found.full_budget.left > 0.9
    assert {f.id for f in from_controls(found)} >= {"not-broken-at-eps-1", "no-better-than-noise"}
    assert flags_of(Blind())[0] >= {"no-gradient", "not-broken-at-eps-1", "no-better-than-noise"}


def test_a_handful_of_images_accuses_nobody() -> None:
    # four times as much breaks nothing
    few = Task(Honest().eval(), X[:5], Y[:5], sg.Linf(0.002), (), plan=Plan(random=False))
    assert noise_control.against_noise(few) == ()
    assert {
        f.id
        for f in sg.audit(Honest().eval(), X[:5], Y[:5], sg.Linf(0.002), effort="quick").flags
        if f.level == "error"
    } == set()


def test_where_only_black_boxes_break_a_model_the_second_attack_says_so() -> None:
    errors, got = flags_of(Backwards(), 0.1)
    second = present(present(got.record.controls).second_attack)
    assert present(second.left) >= second_attack.ENOUGH
    assert "black-box-beats-white-box" in errors
    honest = present(flags_of(Honest(), 0.1)[1].record.controls).second_attack
    assert present(honest).black_box_only == 0


def test_a_model_that_changes_its_mind_is_noticed_with_nothing_allowed_to_change() -> None:
    tired = controls.zero_budget(task(Tiring()))
    assert tired.left < tired.clean
    assert controls.zero_budget(task(Honest())) == ZeroBudget(1.0, 1.0)


def test_pgd_weaker_than_fgsm_is_seen_where_it_is() -> None:
    first, *_ = controls.pairs(controls.Outcomes(task(Narrow())))
    assert first.only_weaker > 5
    assert first.p < ALPHA
    first, *_ = controls.pairs(controls.Outcomes(task(Honest())))
    assert first.only_weaker == 0
    assert "pgd-weaker-than-fgsm" in {
        f.id for f in sg.audit(Narrow().eval(), X, Y, sg.Linf(EPS), effort="quick").flags
    }


def test_what_restarts_gain_and_where_a_surrogate_is_silent_is_found(tiny: Classifier) -> None:
    left = controls.restarts(controls.Outcomes(task(Narrow())))
    assert left.five < left.one
    assert controls.dead_surrogate_share(task(Honest())) == {}
    for layer in sg.neurons.spiking(tiny).values():
        layer.spec = replace(layer.spec, surrogate=sg.surrogates.Triangle(0.25))
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with sg.tap(tiny) as seen, torch.no_grad():
        y = tiny(x).argmax(1)
    shares = controls.dead_surrogate_share(Task(tiny, x, y, sg.Linf(EPS), (), plan=Plan(random=False)))
    assert shares == {
        name: pytest.approx(float((u.abs() > 0.99 * 0.25).float().mean()), abs=0.02)
        for name, u in seen.potentials.items()
    }


@pytest.mark.parametrize(
    ("model", "shares"), [(Honest(), {"own": 1.0, "bpda": 1.0}), (Blind(), {"own": 0.0, "bpda": 0.0})]
)
def test_survivors_with_a_gradient_are_counted(model: nn.Module, shares: dict[str, float]) -> None:
    state = begin(task(model))
    shares_found = second_attack.survivors_with_gradient(task(model), state)
    assert {name: shares_found[name] for name in shares} == shares
