"""TGO: its penalty, its noise, and what both do to a network."""

from typing import Any, Literal

import pytest
import torch
from conftest import little_recipe
from narrow import as_a, present

import spikeguard as sg
from spikeguard.data.images import Dataset
from spikeguard.defenses import Step, View
from spikeguard.defenses.membrane import Guarding
from spikeguard.errors import SpikeguardWarning, UserError
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import spiking
from spikeguard.training.loop import train


@pytest.mark.parametrize("side", ["both", "below"])
def test_penalty_is_the_formula_summed_over_layers(tiny: Classifier, side: Literal["both", "below"]) -> None:
    guard = sg.TGO(delta=0.5, lambda_max=0.4, sigma=0.0, side=side)
    hooks = guard.start(tiny)
    x = torch.rand(6, 1, 8, 8)
    hooks.complete(Step(tiny, x, torch.zeros(6).long()))
    with hooks.watch(tiny, "clean"):
        tiny(x)
    with sg.tap(tiny) as t:
        tiny(x)
    expected = 0.0
    for u in t.potentials.values():
        steps, samples = u.shape[:2]
        terms = [max(0.0, 0.5 - abs(v)) for v in u.flatten().tolist() if side == "both" or v < 0]
        expected += sum(terms) / (steps * samples * u[0, 0].numel())
    found = present(hooks.penalty(Step(tiny, x, torch.zeros(6).long(), progress=1.0)))
    assert float(found.detach()) == pytest.approx(0.4 * expected, rel=1e-5)


def test_gradient_of_the_penalty_pushes_potentials_away_from_the_threshold() -> None:
    layer = sg.LIF(decay=0.0)
    current = torch.tensor([[[0.7, 0.9, 1.1, 1.3, 2.0]]], requires_grad=True)
    with sg.tap(layer, band=sg.neurons.Band(0.25)) as t:
        layer(current)
    (gradient,) = torch.autograd.grad(t.penalties[""], current)
    assert gradient.flatten().tolist() == pytest.approx([0, 0.2, -0.2, 0, 0])


def test_lambda_rises_by_cosine() -> None:
    guard = sg.TGO(lambda_max=0.6)
    assert [guard.weight(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.3, 0.6])
    assert guard.weight(0.25) == pytest.approx(0.3 * (1 - 2**-0.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delta": 0.0}, "delta"),
        ({"delta": -1.0}, "delta"),
        ({"sigma": -0.1}, "sigma"),
        ({"lambda_max": -1.0}, "lambda_max"),
        ({"side": "up"}, "side"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sg.TGO(**settings)


def test_much_noise_against_a_narrow_band_is_warned_of_with_the_reason() -> None:
    with pytest.warns(SpikeguardWarning, match="raises it for neurons that the constraint has pushed out"):
        sg.TGO(delta=0.2, sigma=0.1)
    sg.TGO(delta=0.2, sigma=0.1, lambda_max=0.0)  # without the constraint there is nothing to contradict


def test_both_parts_can_be_switched_on_alone(tiny: Classifier) -> None:
    noise_only, constraint_only = sg.TGO(lambda_max=0.0, sigma=0.1), sg.TGO(sigma=0.0)
    constraint_only.prepare(tiny)
    assert all(layer.noise is None for layer in spiking(tiny).values())
    assert noise_only.start(tiny).penalty(Step(tiny, torch.rand(1, 1, 8, 8), torch.zeros(1).long())) is None
    noise_only.prepare(tiny)
    assert all(layer.noise == sg.Noise(0.1) for layer in spiking(tiny).values())


@pytest.mark.parametrize(
    ("sees", "crafted", "read"),
    [
        ("trained", True, ["adversarial"]),
        ("trained", False, ["clean"]),
        ("clean", True, ["clean"]),
        ("adversarial", True, ["adversarial"]),
        ("both", True, ["adversarial", "clean"]),
    ],
)
def test_the_constraint_reads_the_forward_passes_that_its_field_names(
    tiny: Classifier, sees: Literal["trained", "clean", "adversarial", "both"], crafted: bool, read: list[str]
) -> None:
    hooks = as_a(Guarding, sg.TGO(sees=sees, sigma=0.0).start(tiny))
    x = torch.rand(4, 1, 8, 8)
    views = {"adversarial": View(x + 0.1, 1.0)} if crafted else {"clean": View(x, 1.0)}
    step = Step(tiny, x, torch.arange(4), views=views)
    hooks.complete(step)
    seen = []
    for name, view in step.views.items():
        with hooks.watch(tiny, name):
            tiny(view.x.clamp(0, 1))
        if hooks.tap.penalties:
            seen.append(name)
            hooks.tap.clear()
    assert seen == read


def test_a_constraint_on_adversarial_passes_without_adversarial_training_is_refused(
    little_data: Dataset,
) -> None:
    with pytest.raises(UserError, match="needs adversarial training"):
        train(little_recipe(defenses=(sg.TGO(sees="adversarial", sigma=0.0),)), data=little_data)


@pytest.mark.slow
def test_tgo_moves_potentials_and_adversarial_training_helps(little_data: Dataset) -> None:
    """On 500 images: fewer potentials in the band than without.

    And more robust accuracy with adversarial training than without.
    """
    share, robust = {}, {}
    x, y = little_data.test.pixels(), little_data.test.y
    for name, defenses in {
        "vanilla": (),
        "mc": (sg.TGO(lambda_max=2.0, sigma=0.0),),
        "at": (sg.AT(eps=16 / 255),),
    }.items():
        net = train(
            little_recipe(defenses=defenses, epochs=12, options={"width": 8}, augment=False), data=little_data
        ).net
        with torch.no_grad(), sg.tap(net) as t:
            net(x)
        share[name] = sum(float((u.abs() < 0.5).float().mean()) for u in t.potentials.values())
        got = sg.pgd(
            net,
            x,
            y,
            sg.Linf(16 / 255),
            steps=10,
            restarts=1,
            gradient=sg.gradients.SwapSurrogate(sg.surrogates.Atan(8.0)),
        )
        robust[name] = 1 - float(got.broken.float().mean())
    assert share["mc"] < 0.9 * share["vanilla"]
    assert robust["at"] > robust["vanilla"] + 0.05
