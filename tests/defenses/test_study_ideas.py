"""Members that follow the study's ideas.

A teacher without spikes, adversaries that grow, a surrogate as wide as the potentials are large.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import little_recipe
from narrow import as_a, present
from plain import kl, logits, softmax, without_spikes
from torch import Tensor

import spikeguard as sg
from spikeguard.data.images import Dataset
from spikeguard.defenses import Hooks, Step, distillation, fitted
from spikeguard.errors import UserError
from spikeguard.neurons import spiking
from spikeguard.surrogates import Gaussian, Rectangle, Sigmoid, StraightThrough, Stretched, Triangle
from spikeguard.training.builder import make_network


def answers(hooks: Hooks) -> Tensor:
    """What the teacher says of the batch."""
    return present(as_a(distillation._Distillation, hooks).answers)


def test_the_teacher_is_the_ann_that_was_trained_first_and_stays_as_it_was(step: Step) -> None:
    hooks = sg.defenses.Distillation(share=0.5).start(step.net)
    step.progress = 0.0
    hooks.begin(step)
    first_part = not hooks.settled
    assert first_part
    assert step.net(step.x, per_step=True).shape[0] == 1
    hooks.craft(step)
    assert {name: view.weight for name, view in step.views.items()} == {"adversarial": 1.0}  # as AT does
    assert hooks.penalty(step) is None
    trained = copy.deepcopy(step.net)
    step.progress = 0.5
    hooks.begin(step)
    assert hooks.settled
    assert step.net(step.x, per_step=True).shape[0] == 3
    with torch.no_grad():
        for p in step.net.parameters():
            p.add_(0.1)
        hooks.craft(step)
        expected = without_spikes(trained.eval(), step.x)
    torch.testing.assert_close(answers(hooks), expected)
    assert {name: view.weight for name, view in step.views.items()} == {"adversarial": 0.0, "clean": 0.0}
    assert 0 < float((step.views["adversarial"].x - step.x).abs().max()) <= 8 / 255 + 1e-6


def test_distillation_is_its_formula(step: Step) -> None:
    hooks = sg.defenses.Distillation(clean_share=0.25, temperature=2.0).start(step.net)
    step.progress = 0.75
    hooks.begin(step)
    hooks.craft(step)
    teacher = [softmax([v / 2 for v in row]) for row in answers(hooks).tolist()]
    step.logits = {"adversarial": logits(1, 8, 10), "clean": logits(2, 8, 10)}
    far, near = (
        sum(
            kl(t, softmax([v / 2 for v in row]))
            for t, row in zip(teacher, step.logits[view].tolist(), strict=True)
        )
        for view in step.logits
    )
    assert float(present(hooks.penalty(step))) == pytest.approx(4 * (0.75 * far + 0.25 * near) / 8, rel=1e-4)


def test_adversaries_of_distillation_leave_the_teachers_answer(step: Step) -> None:
    hooks = sg.defenses.Distillation(eps=0.2, steps=5, random_start=False).start(step.net)
    step.progress = 0.75
    hooks.begin(step)
    hooks.craft(step)
    by_label = sg.AT(eps=0.2, steps=5, random_start=False).adversaries(step)
    with torch.no_grad():
        wanted = answers(hooks).softmax(1).tolist()
        far, near = (
            sum(map(kl, wanted, step.net.eval()(x).softmax(1).tolist()))
            for x in (step.views["adversarial"].x, by_label)
        )
    assert far > 1.05 * near


@pytest.mark.parametrize(
    ("progress", "eps", "steps"),
    [(0.0, 0.0, 2), (0.125, 0.05, 2), (0.25, 0.1, 2), (0.625, 0.15, 2), (0.7, 0.16, 5), (0.99999, 0.2, 5)],
)
def test_eps_rises_and_grows_and_steps_are_more_at_the_end(
    step: Step, progress: float, eps: float, steps: int
) -> None:
    adversary = sg.AT(eps=0.1, warmup=0.25, eps_end=0.2, steps=2, late_steps=5, random_start=False)
    calls = []
    handle = step.net.head.register_forward_hook(lambda *a: calls.append(1))
    step.x, step.progress = step.x / 2 + 0.25, progress  # nothing is clipped
    found = adversary.adversaries(step)
    handle.remove()
    assert float((found - step.x).abs().max()) == pytest.approx(eps, abs=1e-4)
    assert len(calls) == steps


def test_an_adversary_whose_end_is_not_given_stays_and_bad_values_are_refused(step: Step) -> None:
    assert [sg.AT(eps=0.1, warmup=0.25).schedule(p) for p in (0.125, 0.25, 0.99)] == [
        (0.5, 2),
        (1.0, 2),
        (1.0, 2),
    ]
    refused: tuple[dict[str, Any], ...] = (
        {"eps_end": 2.0},
        {"late_steps": 0},
        {"late_share": 0.0},
        {"eps": 0.0, "eps_end": 0.1},
        {"warmup": 1.0, "eps_end": 0.1},
    )
    for settings in refused:
        with pytest.raises(UserError, match=str(next(reversed(settings)))):
            sg.AT(**settings)


@pytest.mark.parametrize(
    "shape", [Triangle(0.7), sg.surrogates.Atan(3.0), Sigmoid(3.0), Gaussian(0.3), Rectangle(0.4)]
)
def test_a_surrogate_of_another_sharpness_is_the_same_shape_stretched(shape: Stretched) -> None:
    u, a = torch.linspace(-2, 2, 41), 2.5
    assert shape.sharpened(a).sharpness == pytest.approx(a)
    torch.testing.assert_close(shape.sharpened(a).derivative(u), shape.derivative(u, torch.tensor(a)))


def test_the_fitted_surrogate_follows_a_running_mean_of_the_potentials(
    little_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitted, "EVERY", 1)
    recipe = little_recipe(defenses=(sg.defenses.FittedSurrogate(reach=2.0),), epochs=1, augment=False)
    means: dict[str, float] = {}
    inner = fitted._Fitted.after

    def after(self: fitted._Fitted, step: Step) -> None:
        for name, u in self.tap.potentials.items():
            means[name] = (
                0.5 * means.get(name, 1.0) + 0.5 * sum(abs(v) for v in u.flatten().tolist()) / u.numel()
            )
        inner(self, step)

    monkeypatch.setattr(fitted._Fitted, "after", after)
    net = sg.train(recipe, tmp_path / "run", data=little_data).net
    for other in (net, sg.load(tmp_path / "run")):
        for name, layer in spiking(other).items():
            assert layer.spec.surrogate.sharpness == pytest.approx(1 / (2.0 * means[name]), rel=1e-3)
            assert type(layer.spec.surrogate) is sg.surrogates.Atan
            assert abs(means[name] - 1) > 0.05


def test_a_surrogate_without_width_cannot_be_fitted(little_data: Dataset) -> None:
    recipe = little_recipe(
        neuron=sg.Neuron(decay=0.5, surrogate=StraightThrough()), defenses=(sg.defenses.FittedSurrogate(),)
    )
    with pytest.raises(UserError, match="has no width"):
        make_network(recipe, little_data)
