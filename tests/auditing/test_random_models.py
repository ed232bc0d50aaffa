"""Attacks on models that draw: averaged gradients, fresh draws when scored."""

import pytest
import torch
from torch import Tensor

import spikeguard as sg
from spikeguard.auditing.member import Member
from spikeguard.auditing.run import run_suite, settle
from spikeguard.auditing.task import Plan, Task
from spikeguard.gradients import Estimator, Own
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Noise, spiking
from spikeguard.random import draws


def test_index_and_seed_decide_the_random_start() -> None:
    samples = torch.tensor([5, 9, 5])
    a = draws.uniform(draws.key(0, "start"), samples, 50)
    assert torch.equal(a[0], a[2])
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a, draws.uniform(draws.key(1, "start"), samples, 50))


def test_draws_follow_their_laws() -> None:
    """Moments within five standard errors; neighbors in position, sample and time are unrelated."""
    n = torch.arange(1000)
    steps = draws.normal(draws.step_keys(draws.key("test"), n, 2), 400, 2)
    z, u = steps[0], draws.uniform(draws.key("test"), n, 400)
    count = z.numel() ** 0.5
    assert abs(float(z.mean())) < 5 / count
    assert abs(float(z.var()) - 1) < 5 * 2**0.5 / count
    assert abs(float((z**4).mean()) - 3) < 5 * 96**0.5 / count
    assert abs(float(u.mean()) - 0.5) < 5 / 12**0.5 / count
    assert abs(float((z[:, 1:] * z[:, :-1]).mean())) < 5 / count
    assert abs(float((z[1:] * z[:-1]).mean())) < 5 / count
    assert abs(float((steps[0] * steps[1]).mean())) < 5 / count
    assert abs(float((steps[0] ** 2 * steps[1] ** 2).mean()) - 1) < 5 * 8**0.5 / count
    assert u.min() > 0
    assert u.max() < 1


def test_a_random_model_is_scored_on_fresh_draws_not_by_the_first_success(
    tiny: Classifier, pair: tuple[Tensor, Tensor]
) -> None:
    """Labels are right in nearly every draw.

    'first success in any draw' would break most samples, fresh draws do not.
    """
    x, y = pair
    for layer in spiking(tiny).values():
        layer.noise = Noise(0.3, at_eval=True)
    zero_budget = Member("nothing", "own gradient", sg.pgd, {"steps": 1, "restarts": 1}, all=True)
    task = Task(tiny, x, y, sg.Linf(0.0), [zero_budget], plan=Plan(eot_draws=2))
    state = run_suite(task)
    assert task.random
    candidates = settle(task, state)
    assert torch.equal(candidates.read(x, sg.Linf(0.0))[1], x), (
        "a random model has an input for every image; here nothing may move"
    )
    assert 0 < float(state.clean.mean()) < 1
    assert float(state.right.mean()) == pytest.approx(float(state.clean.mean()), abs=0.08)


def test_eot_gradient_is_the_mean_of_its_draws(tiny: Classifier, pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    for layer in spiking(tiny).values():
        layer.noise = Noise(0.3, at_eval=True)
    from spikeguard.losses import ce
    from spikeguard.neurons import seed_noise

    seed_noise(tiny, 4)
    with Own().open(tiny) as one:
        singles = torch.stack([one(x, y, ce)[0] for _ in range(3)])
    seed_noise(tiny, 4)
    with sg.gradients.EOT(3).open(tiny) as averaged:
        torch.testing.assert_close(averaged(x, y, ce)[0], singles.mean(0))
    assert averaged.backwards == 21


def test_the_class_of_mean_logits_is_reported_beside_the_share_of_right_draws() -> None:
    from spikeguard.auditing.scoring import over_draws

    def noisy(x: Tensor) -> Tensor:  # right at about one draw of three, but by far
        return torch.stack([torch.where(torch.rand(len(x)) < 1 / 3, 9.0, 0.0), torch.ones(len(x))], 1)

    share, of_mean = over_draws(noisy, torch.rand(20, 1, 2, 2), torch.zeros(20).long(), 0, 300)
    assert float((share - 1 / 3).abs().max()) < 0.15
    assert bool(of_mean.all())
    assert not bool(over_draws(noisy, torch.rand(20, 1, 2, 2), torch.ones(20).long(), 0, 300)[1].any())


@pytest.mark.parametrize(
    "inner",
    [
        Own(),
        sg.gradients.ASSG(),
        sg.gradients.ASSG(start_from_first=True),
        sg.gradients.ThresholdFirst(pull=2),
        sg.gradients.SoftSpikes(steps=4),
        sg.gradients.NoiseFree(sg.surrogates.Atan(4.0)),
        sg.gradients.MeanField(),
        sg.gradients.PerStep(sg.gradients.ASSG()),
        sg.gradients.RandomSurrogate(),
    ],
    ids=repr,
)
def test_averaging_over_draws_leaves_the_schedule_of_an_estimator_as_it_is(
    tiny: Classifier, pair: tuple[Tensor, Tensor], inner: Estimator
) -> None:
    """Without noise all draws are the same: averaged or not, the same gradients step by step."""
    x, y = pair
    from spikeguard.losses import ce

    with inner.open(tiny) as alone, sg.gradients.EOT(3, inner).open(tiny) as averaged:
        for step in range(5):
            torch.testing.assert_close(averaged(x, y, ce)[0], alone(x, y, ce)[0], msg=f"gradient {step}")
    transfer = sg.gradients.Transfer(tiny, inner)
    with transfer.open(tiny) as alone, sg.gradients.EOT(3, transfer).open(tiny) as averaged:
        for _ in range(5):
            torch.testing.assert_close(averaged(x, y, ce)[0], alone(x, y, ce)[0])


def test_a_member_that_averages_already_is_not_averaged_again(
    tiny: Classifier, pair: tuple[Tensor, Tensor]
) -> None:
    x, y = pair
    member = Member(
        "own", "own gradient", sg.pgd, {"steps": 2, "restarts": 1, "early_stop": False}, sg.gradients.EOT(3)
    )
    assert member.run(tiny, x, y, sg.Linf(0.1), 0, torch.arange(len(x)), draws=5).backwards == 2 * 3 * len(x)
