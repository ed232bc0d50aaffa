"""What people met in public threads on robustness libraries: honest models that a check could accuse.

Each test names the thread; the code is ours.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from honest import CLASSES, SIZE, Noisy, Spiking, Then, fit, honest, images, mlp
from narrow import applied, as_a
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.auditing import checks, controls, noise_control
from spikeguard.auditing.flags import flag
from spikeguard.auditing.literature import LITERATURE
from spikeguard.auditing.raise_flags import from_controls
from spikeguard.auditing.task import Plan, Task
from spikeguard.models import check_logits, is_stochastic
from spikeguard.records.schema import Controls
from spikeguard.threat import Threat
from spikeguard.wrapping.repeatable import stateful

Model = Callable[[Tensor], Tensor]


def findings(model: Model, x: Tensor, y: Tensor) -> set[str]:
    """Ids of what the checks before the attacks find."""
    with torch.no_grad():
        random = is_stochastic(model, *check_logits(model, x, y)) and not stateful(model, x)
    return set(checks.check_model(model, x, y, random).findings)


def alarms(model: Model, x: Tensor, y: Tensor, threat: Threat) -> set[str]:
    """Flags of the controls that compare attacks."""
    task = Task(model, x, y, threat, (), plan=Plan(random=False))
    found = Controls(
        images=len(x),
        zero_budget=controls.zero_budget(task),
        full_budget=controls.full_budget(task),
        against_noise=noise_control.against_noise(task),
        pairs=controls.pairs(controls.Outcomes(task)),
    )
    return {f.id for f in from_controls(found)}


@pytest.mark.parametrize("classes", [2, 3])
def test_fewer_than_four_classes(classes: int) -> None:
    """Losses that rank three or four logits fail on two or three classes.

    Source: github.com/fra31/auto-attack/issues/70,
    github.com/Trusted-AI/adversarial-robustness-toolbox/issues/2399.
    """
    x, y = images(24, classes)
    model = fit(mlp(classes=classes), x, y)
    assert alarms(model, x, y, sg.Linf(0.02)) == set()
    chosen = [m for m in sg.auditing.suite.SUITES["quick"] if m.id == "apgd20-bpda-targeted3"]
    assert chosen[0].run(model, x, y, sg.Linf(0.3), 0, torch.arange(24)).broken.any()


def test_more_targets_than_classes() -> None:
    """Four classes, and attacks that want nine targets.

    Source: github.com/fra31/auto-attack/issues/76 and 79.
    """
    model, x, y = honest("logits")
    member = next(m for m in sg.auditing.suite.SUITES["full"] if m.id == "autoattack-apgd-t")
    found = member.run(model, x[:4], y[:4], sg.Linf(0.5), 0, torch.arange(4))
    assert found.broken.all()


def test_the_budgets_of_a_first_example() -> None:
    """A list of budgets that begins near 0.

    Source: github.com/bethgelab/foolbox/issues/207 and its examples.
    """
    model, x, y = honest("logits")
    for eps in (0.0002, 0.0005, 0.001):
        assert "no-better-than-noise" not in alarms(model, x, y, sg.Linf(eps))


def test_a_zero_gradient_at_some_images() -> None:
    """An image with gradient 0 (here a dead network, for black images).

    Source: github.com/bethgelab/foolbox/pull/1.
    """
    model, x, y = honest("logits")
    dark = x.clone()
    dark[:2] = 0.0

    def gated(at: Tensor) -> Tensor:
        scores: Tensor = model(F.relu(at - 0.01))
        return scores

    found = checks.check_model(gated, dark, y, random=False).findings
    assert "zero-gradient" in found
    assert 0.9 < as_a(float, found["zero-gradient"]["share_with_gradient"]) < 0.95
    assert "locked-gradient" not in found
    assert "not-broken-at-eps-1" not in alarms(gated, dark, y, sg.Linf(0.02))


def test_a_generator_of_its_own() -> None:
    """Random defenses, here with a generator that no global seed reaches; it is a random model, not one
    that carries state.

    Source: github.com/fra31/auto-attack/issues/15 and pull/104.
    """
    model, x, y = honest("own generator")
    noisy = as_a(Noisy, model)
    before = noisy.generator.get_state()
    assert is_stochastic(model, *check_logits(model, x, y))
    noisy.generator.set_state(before)
    assert findings(model, x, y) == set()

    own = torch.Generator()
    assert (
        findings(lambda at: noisy.net(at) + 0.01 * torch.rand(len(at), CLASSES, generator=own), x, y) == set()
    )


def test_a_single_draw_is_no_score() -> None:
    """One draw inflates an attack's success; the flag's page names it.

    Source: github.com/fra31/auto-attack/pull/105.
    """
    assert any("auto-attack/pull/105" in source for source in LITERATURE["random-without-eot"])
    assert "single draw" in sg.auditing.flags.KINDS["random-without-eot"].why
    assert flag("random-without-eot").level == "error"


def test_sums_in_another_order_are_no_randomness() -> None:
    """On a busy machine or GPU the last digits differ from call to call.

    Source: github.com/carlini/nn_robust_attacks/issues/22, github.com/fra31/auto-attack/issues/74.
    """
    model, x, y = honest("logits")
    generator = torch.Generator().manual_seed(0)

    def jittering(at: Tensor) -> Tensor:
        scores: Tensor = model(at)
        return scores + 1e-7 * scores.detach().abs().max() * torch.randn(scores.shape, generator=generator)

    assert not is_stochastic(jittering, *check_logits(jittering, x, y))
    assert findings(jittering, x, y) == set()


def test_classes_that_tie_may_change_with_the_batch() -> None:
    """Classes that change with the batch are an error there; ties that rounding breaks are not.

    Source: github.com/yaodongyu/TRADES/issues/3.
    """
    scores = torch.tensor([2.0, 2.0, 0.0, 1.0])

    def tied(at: Tensor) -> Tensor:
        up = torch.zeros(CLASSES).index_fill(0, torch.tensor([len(at) % 2]), 1e-7)
        return at.flatten(1)[:, :1] * 0 + scores + up

    x, y = images()
    assert "depends-on-batch" not in findings(tied, x, y)

    def social(at: Tensor) -> Tensor:
        return at.flatten(1)[:, :CLASSES] - at.flatten(1)[:, :CLASSES].mean(0)

    assert "depends-on-batch" in findings(social, x, y)


def test_an_extra_softmax_and_its_logarithm() -> None:
    """A softmax at the end hides a network; its logarithm does not.

    Source: github.com/fra31/auto-attack/issues/41.
    """
    model, x, y = honest("logits")
    assert "no-logits" in findings(Then(model, lambda z: z.softmax(1)).eval(), x, y)
    assert findings(Then(model, lambda z: z.log_softmax(1)).eval(), x, y) == set()


def test_a_gradient_killer_is_still_found() -> None:
    """An identity whose backward pass is 0.

    Source: github.com/fra31/auto-attack/issues/43.
    """
    model, x, y = honest("logits")

    class Killed(nn.Module):
        def forward(self, at: Tensor) -> Tensor:
            scores: Tensor = model(at.detach() + 0 * at)
            return scores

    assert "zero-gradient" in findings(Killed().eval(), x, y)


def test_trees_have_no_gradient_and_that_is_all() -> None:
    """A tree is no network. What is said of it is true: it gives no gradient; it is neither random nor
    does it depend on anything but the image.

    Source: github.com/Trusted-AI/adversarial-robustness-toolbox/issues/2048.
    """
    x, y = images()
    bright = torch.stack([x[y == k].flatten(1).mean(0) for k in range(CLASSES)]) > 0.5

    def votes(at: Tensor) -> Tensor:
        return ((at.detach().flatten(1) > 0.5)[:, None] == bright).float().sum(2)

    assert findings(votes, x, y) == {"zero-gradient"}


def test_spikes_as_scores() -> None:
    """Scores are counts or rates of the output spikes.

    Source: github.com/bamsumit/slayerPytorch/issues/60, github.com/fangwei123456/spikingjelly/issues/386.
    """
    x, y = images()
    for scores in ("counts", "rates"):
        for steps in (1, 4):
            model = fit(Spiking(timesteps=steps, scores=scores), x, y)
            assert findings(model, x, y) <= {"saturated-logits"}


def test_one_winner_a_step_is_no_softmax() -> None:
    """Rates of a winner-take-all output sum to 1. What is said is true: a maximum has no threshold to read,
    so that other surrogates are guesses.

    Source: github.com/fra31/auto-attack/issues/58.
    """
    model, x, y = honest("logits")

    class First(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return F.one_hot(z.argmax(1), CLASSES).to(z)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad

    def rates(at: Tensor) -> Tensor:
        votes = [applied(First, model(at) + k * at.flatten(1)[:, :CLASSES]) for k in range(5)]
        return torch.stack(votes).mean(0)

    assert torch.allclose(rates(x).sum(1), torch.ones(len(x)))
    assert findings(rates, x, y) == {"spikes-unread"}


def test_a_sparse_budget_on_small_images() -> None:
    """Croce and Hein, Mind the box, ICML 2021 (code: fra31/auto-attack): under L1 a pixel at the end of
    [0, 1] takes up the whole step. PGD goes on with the others, and beats noise."""
    model, x, y = honest("linear")
    task = Task(model, x, y, sg.L1(3.0), (), plan=Plan(random=False))
    row = noise_control.against_noise(task)[-1]
    assert noise_control.beats_noise(row)
    dark = torch.zeros_like(x)
    weight = torch.zeros(CLASSES, SIZE)
    weight[1] = torch.linspace(-2.0, 1.0, SIZE)

    def falling(at: Tensor) -> Tensor:
        return at.flatten(1) @ weight.T + torch.tensor([2.5, 0.0, -9.0, -9.0])

    zero = torch.zeros(len(x), dtype=torch.int64)
    found = sg.pgd(falling, dark, zero, sg.L1(4.0), steps=20, restarts=1, start=False)
    assert found.broken.all(), "the steepest pixels cannot become darker than black"
