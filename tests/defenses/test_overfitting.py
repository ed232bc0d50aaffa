"""Catastrophic overfitting ends a training, and only that."""

import logging

import pytest
import torch
from conftest import little_recipe
from narrow import as_a, wrong
from torch import nn

import spikeguard as sg
from spikeguard.data.images import Dataset
from spikeguard.defenses import EMA, OverfittingStop, Step, overfitting
from spikeguard.defenses.base import Hooks
from spikeguard.errors import UserError
from spikeguard.training.loop import train

Epochs = list[tuple[int, float]]


def judged(step: Step, epochs: Epochs, monkeypatch: pytest.MonkeyPatch) -> tuple[Hooks, list[bool]]:
    """Hooks after epochs with so many right adversaries of eight and such accuracy under attack."""
    hooks = OverfittingStop().start(step.net)
    found: list[bool] = []
    for right, robust in epochs:
        logits = torch.zeros(8, 10)
        logits[torch.arange(8), torch.where(torch.arange(8) < right, step.y, (step.y + 1) % 10)] = 1.0
        step.logits = {"clean": logits}
        hooks.after(step)
        monkeypatch.setattr(type(hooks), "robust_accuracy", lambda *_, robust=robust: robust)
        measured = hooks.report(step.net, step.x, step.y, True)
        assert measured["validation_robust_accuracy"] == robust
        found.append(bool(measured["overfitted"]))
        with torch.no_grad():
            as_a(nn.Parameter, step.net.head.bias).add_(1.0)  # an epoch's training
    return hooks, found


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        ([(3, 0.3), (4, 0.3), (7, 0.1)], [False, False, True]),
        ([(3, 0.3), (4, 0.3), (4, 0.1)], [False, False, False]),  # its own adversaries are as hard as before
        ([(3, 0.3), (4, 0.3), (7, 0.2)], [False, False, False]),  # more than half is left
    ],
)
def test_both_signs_together_end_a_training(
    step: Step, epochs: Epochs, expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks, found = judged(step, epochs, monkeypatch)
    assert found == expected
    assert hooks.ended == any(expected)


def test_the_weights_of_the_last_sound_epoch_are_kept_and_the_state_survives(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = step.net.head.bias.detach().clone()
    hooks, _ = judged(step, [(3, 0.3), (4, 0.3), (7, 0.1)], monkeypatch)
    again = OverfittingStop().start(step.net)
    again.restore(hooks.state())
    assert again.ended
    again.finish(step.net, iter(()))
    assert torch.allclose(step.net.head.bias, start + 1.0)


def test_a_training_ends_early_with_a_warning_and_a_full_record(
    little_data: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    robust = iter([0.3, 0.0, 0.3, 0.3])
    monkeypatch.setattr(overfitting._OverfittingStop, "robust_accuracy", lambda *_: next(robust))
    recipe = little_recipe(defenses=(OverfittingStop(), EMA()), epochs=4, options={"width": 4})
    with caplog.at_level(logging.WARNING, "spikeguard"):
        run = train(recipe, data=little_data)
    assert [row.measured["overfitted"] for row in run.record.epochs] == [False, True]
    assert run.record.cost.steps == 2 * 9
    assert "catastrophic overfitting" in caplog.text
    first = train(little_recipe(defenses=(), epochs=4, options={"width": 4}), data=little_data).record.epochs
    assert run.record.kept_accuracy == first[0].validation_accuracy


def test_settings_out_of_range_are_named() -> None:
    for name, value in (("eps", -1.0), ("steps", 0), ("images", 0), ("share", 1.0)):
        with pytest.raises(UserError, match=f"OverfittingStop: {name}"):
            OverfittingStop(**wrong({name: value}))
    with pytest.raises(UserError, match="nothing to choose by"):
        sg.Recipe(validation=0.0, defenses=(OverfittingStop(),))
