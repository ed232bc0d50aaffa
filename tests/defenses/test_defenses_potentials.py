"""Every defense against a closed form or a plain loop: potentials, conversion, the yardstick."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from types import SimpleNamespace
from typing import Literal, cast

import pytest
import torch
from narrow import as_a, conv_of, present, stages_of
from plain import logits, without_spikes
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.adapters.tap import Tap
from spikeguard.defenses import Defense, Step, View, disturbance, membrane
from spikeguard.defenses.conversion import Analog, stairs
from spikeguard.errors import UserError
from spikeguard.networks import build
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Neuron, Noise, seed_noise, spiking


def test_mass_is_that_of_the_normal_law_and_moments_are_per_step_and_channel() -> None:
    for mean, deviation, gamma in ((0.3, 0.5, 1.0), (-1.0, 0.2, 0.4), (0.0, 2.0, 0.5)):
        law = NormalDist(mean, deviation)
        expected = law.cdf(gamma) - law.cdf(-gamma)
        assert float(
            membrane.mass(torch.tensor(mean).double(), torch.tensor(deviation).double(), gamma)
        ) == pytest.approx(expected, rel=1e-6)
    u = logits(11, 2, 3, 4, 5, 5)
    means, deviations = membrane.moments(u)
    for t in range(2):
        for c in range(4):
            values = u[t, :, c].flatten().tolist()
            m = sum(values) / len(values)
            assert float(means[t, c]) == pytest.approx(m, abs=1e-5)
            assert float(deviations[t, c]) == pytest.approx(
                (sum((v - m) ** 2 for v in values) / len(values)) ** 0.5, rel=1e-4
            )


@pytest.mark.parametrize("kind", ["empirical", "batch norm"])
def test_mpd_sgr_is_the_mean_mass(tiny: Classifier, kind: Literal["empirical", "batch norm"]) -> None:
    with (
        torch.no_grad()
    ):  # gains and biases that differ: at gains of 1 a square could not be told from a gain
        for m in tiny.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.copy_(torch.linspace(0.4, 1.7, len(m.weight)))
                m.bias.copy_(torch.linspace(-0.5, 0.8, len(m.bias)))
    hooks = sg.defenses.MPDSGR(eta=2.0, gamma=0.5, moments=kind).start(tiny)
    x = torch.rand(6, 1, 8, 8)
    step = Step(tiny, x, torch.zeros(6).long(), progress=1.0)
    hooks.complete(step)
    with hooks.watch(tiny, "clean"), sg.tap(tiny, potentials=True) as t:
        tiny(x)
    got = present(hooks.penalty(step))
    # the mean over layers of the means over channels and steps, not over all channels
    per_layer = []
    for (name, layer), u in zip(spiking(tiny).items(), t.potentials.values(), strict=True):
        norm = as_a(nn.BatchNorm2d, tiny.get_submodule(name.replace("fire", "norm")))
        total = 0.0
        for s in range(u.shape[0]):
            for c in range(u.shape[2]):
                values = u[s, :, c].flatten()
                sigma = float(values.var(unbiased=False) + 1e-8) ** 0.5
                if kind == "batch norm":
                    sigma = (
                        abs(float(norm.weight[c].detach()))
                        * math.sqrt(sum(float(layer.decay) ** (2 * k) for k in range(s + 1)))
                        + 1e-4
                    )
                law = NormalDist(float(values.mean()), sigma)
                total += law.cdf(0.5) - law.cdf(-0.5)
        per_layer.append(total / (u.shape[0] * u.shape[2]))
    assert float(got.detach()) == pytest.approx(2.0 * sum(per_layer) / 3, rel=1e-3)
    norms = [m for m in tiny.modules() if isinstance(m, nn.BatchNorm2d)]
    gradients = torch.autograd.grad(got, [p for m in norms for p in (m.weight, m.bias)], allow_unused=True)
    assert all(g is not None and float(g.abs().sum()) > 0 for g in gradients)
    if kind == "empirical":
        return
    # by parts: d mass / d bias = sum of decay^k <= t times the densities' difference, d mass / d gain through
    # the deviation alone
    for norm, layer, u, (by_gain, by_bias) in zip(
        norms, spiking(tiny).values(), t.potentials.values(), batched(gradients), strict=True
    ):
        for c in range(u.shape[2]):
            gain, bias = 0.0, 0.0
            for s in range(u.shape[0]):
                sums = sum(float(layer.decay) ** k for k in range(s + 1))
                root = math.sqrt(sum(float(layer.decay) ** (2 * k) for k in range(s + 1)))
                mean, sigma = float(u[s, :, c].mean()), float(norm.weight[c].detach()) * root + 1e-4
                low, high = (mean - 0.5) / sigma, (mean + 0.5) / sigma
                density = NormalDist().pdf
                bias += sums * (density(high) - density(low)) / sigma
                gain += root * (low * density(low) - high * density(high)) / sigma
            share = 2.0 / 3 / (u.shape[0] * u.shape[2])
            assert float(by_bias[c]) == pytest.approx(share * bias, rel=2e-2, abs=1e-5)
            assert float(by_gain[c]) == pytest.approx(share * gain, rel=2e-2, abs=1e-5)


def batched(values: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(values[::2], values[1::2], strict=True))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_mppd_is_the_mean_difference_without_reset(step: Step, norm: Literal["l1", "l2"]) -> None:
    hooks = sg.defenses.MPPD(rho=0.7, norm=norm).start(step.net)
    step.net.eval()
    step.views["adversarial"] = View((step.x + 0.05).clamp(0, 1), 0.0)
    hooks.complete(step)
    currents = {}
    for name, view in step.views.items():
        with hooks.watch(step.net, name), sg.tap(step.net, currents=True) as t:
            step.logits[name] = step.net(view.x)
        currents[name] = t.currents["body.stages.2.fire"]
    clean, found = currents["clean"].double(), currents["adversarial"].double()
    e, total = torch.zeros_like(clean[0]), 0.0
    for k in range(3):
        e = 0.5 * e + clean[min(k, len(clean) - 1)] - found[min(k, len(found) - 1)]
        total += float((e.abs() if norm == "l1" else e.square()).sum())
    assert float(present(hooks.penalty(step)).detach()) == pytest.approx(
        0.7 * total / (3 * e.numel()), rel=1e-4
    )


@pytest.mark.parametrize(
    "defense", [sg.defenses.MPPD(), sg.defenses.ShiftGuard()], ids=["MPPD", "ShiftGuard"]
)
def test_both_passes_of_a_disturbance_draw_the_same_noise(step: Step, defense: Defense) -> None:
    """Where the disturbance is nothing, so is the difference, however noisy the neurons."""
    for layer in spiking(step.net).values():
        layer.noise = Noise(0.3)
    seed_noise(step.net, 5)
    hooks = defense.start(step.net)
    for _ in range(2):
        step.views = {"adversarial": View(step.x, 1.0)}
        hooks.complete(step)
        for name, view in step.views.items():
            with hooks.watch(step.net, name):
                step.logits[name] = step.net(view.x)
        assert torch.equal(step.logits["clean"], step.logits["adversarial"])
        hooks.penalty(step)
        assert not torch.equal(step.net(step.x), step.logits["clean"]), "the noise does nothing here"


def test_mppd_makes_its_own_disturbance_without_adversarial_training(step: Step) -> None:
    hooks = sg.defenses.MPPD().start(step.net)
    hooks.complete(step)
    assert step.views["MPPD"].weight == 0
    assert 0 < float((step.views["MPPD"].x - step.x).abs().max()) <= 4 / 255 + 1e-6


def has_read(u: Tensor) -> Tap:
    """A tap that has read ``u`` in a layer."""
    potentials = SimpleNamespace(potentials={"a": u}, clear=lambda: None)
    return cast(Tap, potentials)


def test_the_shift_guard_is_its_formula_and_scaling_does_not_satisfy_it(step: Step) -> None:
    hooks = as_a(disturbance._ShiftGuard, sg.defenses.ShiftGuard(lambda_max=2.0).start(step.net))
    step.net.eval()
    step.progress = 1.0

    def value(scale: float) -> float:
        hooks.margins.clear()
        clean, found = logits(12, 3, 8, 4, 5, 5), logits(13, 3, 8, 4, 5, 5)
        hooks.clean = has_read(scale * clean)
        hooks.disturbed = has_read(scale * (clean + 0.3 * found))
        expected = 0.0
        for c in range(4):
            shifts = (0.3 * scale * found[:, :, c]).abs().flatten()
            m = float(shifts.quantile(0.9))
            u = (scale * (clean + 0.3 * found))[:, :, c]
            expected += float((m - clean[:, :, c].sign() * u).clamp(min=0).mean()) / 4
        got = float(present(hooks.penalty(step)).detach())
        assert got == pytest.approx(2.0 * expected, rel=1e-4)
        return got

    assert value(3.0) == pytest.approx(3 * value(1.0), rel=1e-4)  # MC's value would fall, or stay


def test_what_a_disturbance_can_do_to_the_first_layer_is_attained_and_never_passed(tiny: Classifier) -> None:
    stage, eps = stages_of(tiny)[0], 0.03
    conv, norm = conv_of(stage), stage.norm
    tiny.std.fill_(0.5)
    bound = disturbance.attainable(eps, conv, norm, tiny.std, 0.5, 3)

    def potential(x: Tensor) -> Tensor:  # channel 2, an inner pixel, no reset
        now = norm(conv((x - tiny.mean) / tiny.std))[0, 2, 4, 4]
        return torch.stack([now, 1.5 * now, 1.75 * now])

    x = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(potential(x)[0], x)
    worst = potential(x + eps * gradient.sign()) - potential(x)
    assert worst.tolist() == pytest.approx(bound[:, 2].tolist(), rel=1e-4)
    for seed in range(20):
        other = potential(
            x + eps * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) - 1)
        ) - potential(x)
        assert bool((other.abs() <= bound[:, 2] + 1e-6).all())


def test_the_first_layer_guard_is_its_formula(tiny: Classifier) -> None:
    hooks = sg.defenses.FirstLayerGuard(eps=0.1, lambda_max=2.0).start(tiny)
    step = Step(tiny, torch.rand(4, 1, 8, 8), torch.arange(4), progress=1.0)
    hooks.complete(step)
    with hooks.watch(tiny, "clean"), sg.tap(tiny, potentials=True) as t:
        tiny(step.x)
    stage = stages_of(tiny)[0]
    bound = disturbance.attainable(0.1, conv_of(stage), stage.norm, tiny.std, 0.5, 3)
    u = t.potentials["body.stages.0.fire"]
    expected = (
        sum(
            float((bound[s, c] - u[s, :, c].abs()).clamp(min=0).sum().detach())
            for s in range(3)
            for c in range(u.shape[2])
        )
        / u.numel()
    )
    got = present(hooks.penalty(step))
    assert float(got.detach()) == pytest.approx(2.0 * expected, rel=1e-4)
    (gradient,) = torch.autograd.grad(got, conv_of(stage).weight)
    assert float(gradient.abs().sum()) > 0


# conversion


def test_a_converted_neuron_fires_exactly_the_share_of_its_activation() -> None:
    current = torch.linspace(-1, 2.5, 701, dtype=torch.float64)
    for steps in (1, 2, 4, 8):
        for threshold in (1.0, 0.5):
            layer = sg.LIF(decay=1.0, reset="soft", threshold=threshold, v_init=threshold / 2)
            rate = layer(current.view(1, 1, -1), timesteps=steps).mean(0)[0]
            expected = [
                min(max(math.floor(c * steps / threshold + 0.5) / steps, 0.0), 1.0) for c in current.tolist()
            ]
            off_edge = (
                (current * steps / threshold + 0.5) % 1.0 - 0.5
            ).abs() < 0.499  # sums of doubles decide ties
            assert torch.allclose(rate[off_edge], torch.tensor(expected, dtype=torch.float64)[off_edge]), (
                steps,
                threshold,
            )
            analog = present(Analog(steps, threshold).activation(current.view(1, 1, -1)))[0, 0]
            assert torch.allclose(analog[off_edge], rate[off_edge])


def test_the_activation_has_the_gradient_of_the_clip() -> None:
    x = torch.tensor([-0.5, -0.1, 0.3, 0.99, 1.1, 1.5], requires_grad=True)
    stairs(x, 4).sum().backward()
    assert present(x.grad).tolist() == [0, 1, 1, 1, 1, 0]


def test_conversion_trains_in_one_step_first_and_spikes_afterwards(step: Step) -> None:
    defense = sg.defenses.Conversion(share=0.5)
    defense.prepare(step.net)
    hooks = defense.start(step.net)
    step.progress = 0.2
    hooks.begin(step)
    assert step.net.timesteps == 1
    assert step.net(step.x, per_step=True).shape[0] == 1
    step.progress = 0.5
    hooks.begin(step)
    assert step.net.timesteps == 3
    assert all(
        len(layer.dynamics) == 0 and layer.spec.reset == "soft" and float(layer.decay) == 1
        for layer in spiking(step.net).values()
    )
    assert step.net(step.x, per_step=True).shape[0] == 3


def test_conversion_refuses_thresholds_that_nothing_would_learn() -> None:
    net = build(
        "small", classes=10, in_shape=(1, 8, 8), timesteps=3, neuron=Neuron(learn_threshold=True), width=2
    )
    with pytest.raises(UserError, match="learn_threshold"):
        sg.defenses.Conversion().prepare(net)


def test_conversions_neurons_can_be_trained_from_the_start(step: Step) -> None:
    defense = sg.defenses.Conversion(share=0.0)
    defense.prepare(step.net)
    hooks = defense.start(step.net)
    step.progress = 0.0
    hooks.begin(step)
    assert hooks.settled
    assert step.net.timesteps == 3
    assert all(
        layer.spec.v_init == 0.5 and layer.spec.reset == "soft" for layer in spiking(step.net).values()
    )


def test_the_ann_twin_is_the_same_layers_with_relu(step: Step) -> None:
    net = step.net.eval()
    sg.defenses.ANNTwin().prepare(net)
    torch.testing.assert_close(net(step.x), without_spikes(net, step.x))
    with pytest.raises(UserError, match="both set"):
        sg.compose(sg.defenses.ANNTwin(), sg.TGO())
