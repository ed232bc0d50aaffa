"""Every defense against a closed form or a plain loop: what happens inside neurons and to the images."""

import math

import pytest
import torch
from conftest import awake
from narrow import as_a, present
from plain import fired, loop
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.defenses import Step, View
from spikeguard.defenses.neural import Gates, Homeostatic
from spikeguard.errors import UserError
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Spiking, seed_noise, spiking
from spikeguard.neurons.modifiers import Dynamics, Homeostasis, Input
from spikeguard.random.streams import StochasticModule


@pytest.fixture
def current() -> Tensor:
    return 1.5 * torch.rand(4, 7, generator=torch.Generator().manual_seed(9))


def with_dynamics(dynamics: Dynamics) -> sg.LIF:
    layer = sg.LIF(decay=0.5)
    layer.dynamics.append(dynamics)
    return layer


def homeostatic(layer: Spiking) -> Homeostatic:
    return as_a(Homeostatic, layer.dynamics[0])


def test_dlif_scales_the_current_of_every_step(current: Tensor) -> None:
    from spikeguard.defenses.neural import Gains

    gains = Gains(4)
    with torch.no_grad():
        gains.gain.copy_(torch.tensor([0.5, 1.0, 1.5, 2.0]))
    got = fired(with_dynamics(gains), current)
    expected = loop(current.tolist(), gain=[[g] * 7 for g in (0.5, 1.0, 1.5, 2.0)])
    assert torch.equal(got[0], expected[0])
    assert torch.allclose(got[1], expected[1], atol=1e-6)


def test_feel_has_a_leak_for_every_neuron_and_step_and_trains_it(current: Tensor) -> None:
    from spikeguard.defenses.inputs import Leaks

    leaks = Leaks(4, torch.Size([7]), 1.0)
    with torch.no_grad():
        leaks.leak.uniform_(0, 1, generator=torch.Generator().manual_seed(1))
    layer = with_dynamics(leaks)
    got = fired(layer, current)
    expected = loop(current.tolist(), decay=leaks.leak.tolist())
    assert torch.equal(got[0], expected[0])
    assert torch.allclose(got[1], expected[1], atol=1e-6)
    # gradients of the kernel against the readable loop in plain autograd
    from spikeguard.kernels import equation
    from spikeguard.kernels.mode import Mode

    weight = torch.rand(4, 1, 7, generator=torch.Generator().manual_seed(2))
    x = current[:, None].double().requires_grad_()
    plain_leak = leaks.leak.detach().double()[:, None].requires_grad_()
    plain = equation.integrate(x, plain_leak, layer.threshold, Mode(4, layer.spec.surrogate)).spikes
    expected_gradients = torch.autograd.grad((plain * weight.double()).sum(), (x, plain_leak))
    y = current[:, None].clone().requires_grad_()
    got_gradients = torch.autograd.grad((layer(y) * weight).sum(), (y, leaks.leak))
    assert torch.allclose(got_gradients[0].double(), expected_gradients[0], atol=1e-5)
    assert torch.allclose(got_gradients[1].double(), expected_gradients[1][:, 0], atol=1e-5)


def test_homeostasis_moves_thresholds_by_its_formula(current: Tensor) -> None:
    goal = torch.rand(4, 7, generator=torch.Generator().manual_seed(3))
    rate = torch.full((7,), 0.3)

    class Moving(Dynamics):
        def homeostasis(self) -> Homeostasis:
            return Homeostasis(rate, goal)

    got = fired(with_dynamics(Moving()), current)
    expected = loop(current.tolist(), moving=(rate.tolist(), goal.tolist()))
    assert torch.equal(got[0], expected[0])
    assert torch.allclose(got[1], expected[1], atol=1e-6)


def test_hosnn_remembers_potentials_while_it_reads_and_holds_them_afterwards(step: Step) -> None:
    defense = sg.defenses.HoSNN(share=0.5)
    defense.prepare(step.net)
    hooks = defense.start(step.net)
    goal = {name: torch.zeros_like(homeostatic(layer).goal) for name, layer in spiking(step.net).items()}
    for _ in range(3):
        step.views = {"clean": View(step.x, 1.0)}
        hooks.begin(Step(step.net, step.x, step.y, progress=0.2))
        hooks.complete(step)
        with hooks.watch(step.net, "clean"), sg.tap(step.net) as seen:
            step.net(step.x)
        for name, u in seen.potentials.items():
            goal[name] = goal[name] + 0.05 * ((u.detach() + 1.0).mean(1) - goal[name])
        hooks.after(step)
    first_part = not hooks.settled
    assert first_part
    for name, layer in spiking(step.net).items():
        torch.testing.assert_close(homeostatic(layer).goal, goal[name])
        assert layer.dynamics.homeostasis() is None
    hooks.begin(Step(step.net, step.x, step.y, progress=0.7))
    assert hooks.settled
    assert all(layer.dynamics.homeostasis() is not None for layer in spiking(step.net).values())


def test_adaptive_surrogates_and_other_backward_passes_reach_neurons_with_dynamics(tiny: Classifier) -> None:
    for defense in (
        sg.defenses.HoSNN(),
        sg.defenses.FEEL(radii=()),
        sg.defenses.DLIF(),
        sg.defenses.StoG(),
        sg.defenses.RandHet(),
    ):
        net = awake(
            sg.build(
                "small",
                classes=10,
                in_shape=(1, 8, 8),
                timesteps=3,
                width=4,
                seed=1,
                neuron=sg.Neuron(threshold=0.3),
            )
        )
        defense.prepare(net)
        for layer in spiking(net).values():
            if isinstance(defense, sg.defenses.HoSNN):
                homeostatic(layer).moves.fill_(True)
        x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
        for estimator in (
            sg.gradients.ASSG(start_from_first=True),
            sg.gradients.SwapSurrogate(sg.surrogates.Atan(4.0)),
            sg.gradients.BPTR(),
            sg.gradients.SoftSpikes(),
        ):
            with estimator.open(net) as opened:
                gradient, _, _ = opened(
                    x, y, lambda z, y: nn.functional.cross_entropy(z, y, reduction="none")
                )
            assert bool(torch.isfinite(gradient).all())
            assert float(gradient.abs().sum()) > 0, (defense, estimator)


def test_randhet_draws_decays_and_keeps_the_mean_of_the_current(current: Tensor) -> None:
    from spikeguard.defenses.neural import Heterogeneous

    for each_step in (True, False):
        layer = with_dynamics(Heterogeneous(1.0, each_step))
        seed_noise(layer, 7)
        scaled, drawn = layer.dynamics.charge(current[:, None], 4)
        decay = present(drawn)
        seed_noise(layer, 7)
        got = fired(layer, current)
        expected = loop(current.tolist(), decay=decay[:, 0].tolist(), gain=(1 - decay[:, 0]).tolist())
        assert torch.equal(got[0], expected[0])
        assert torch.allclose(scaled[:, 0], (1 - decay[:, 0]) * current)
        assert bool((decay[0] != decay[1]).any()) == each_step
    many = present(Heterogeneous(1.0, True).charge(torch.ones(4, 50, 400), 4)[1])
    logit = torch.log(many / (1 - many))
    assert float(logit.mean()) == pytest.approx(0, abs=5 / many.numel() ** 0.5)
    assert float(logit.std()) == pytest.approx(1, abs=0.02)


def test_stog_gates_spikes_by_its_probability_and_learns_by_the_relaxation() -> None:
    gates = Gates(torch.Size([3]), 0.5)
    with torch.no_grad():
        gates.keep.copy_(torch.tensor([0.2, 0.6, 1.0]))
    spikes = torch.ones(4, 20000, 3)
    out = gates.gate(spikes)
    assert torch.equal(out[0], out[3])  # one gate for all steps
    assert set(out.detach().unique().tolist()) == {0.0, 1.0}
    assert out[0].mean(0).tolist() == pytest.approx([0.2, 0.6, 1.0], abs=5 * 0.5 / 20000**0.5)
    torch.manual_seed(3)
    drawn = gates.uniform(spikes[:1, :1])
    torch.manual_seed(3)
    (gradient,) = torch.autograd.grad(gates.gate(spikes[:, :1]).sum(), gates.keep)
    for k in range(2):
        p, r = float(gates.keep[k].detach()), float(drawn[0, 0, k])
        z = (math.log(p / (1 - p)) + math.log(r / (1 - r))) / 0.5
        soft = 1 / (1 + math.exp(-z))
        assert float(gradient[k]) == pytest.approx(4 * soft * (1 - soft) / 0.5 / (p * (1 - p)), rel=1e-4)


def test_gates_that_start_open_can_close() -> None:
    gates = Gates(torch.Size([5000]), 0.5)
    (gradient,) = torch.autograd.grad(gates.gate(torch.ones(2, 64, 5000)).sum(), gates.keep)
    assert float(gradient.abs().sum()) > 0


def test_stog_prior_is_half_the_square_for_the_first_part_of_the_training(step: Step) -> None:
    defense = sg.defenses.StoG(gamma=0.1, prior_share=0.6)
    defense.prepare(step.net)
    hooks = defense.start(step.net)
    keeps = [as_a(Gates, layer.dynamics[0]).keep for layer in spiking(step.net).values()]
    assert float(present(hooks.penalty(step)).detach()) == pytest.approx(
        0.1 * sum(k.numel() for k in keeps) / 2, rel=1e-5
    )
    step.progress = 0.6
    assert hooks.penalty(step) is None
    with torch.no_grad():
        keeps[0].fill_(-3.0)
    hooks.after(step)
    assert float(keeps[0].detach().min()) == pytest.approx(0.1)


def test_noise_inside_the_band_only(current: Tensor) -> None:
    layer = sg.LIF(decay=0.5, noise=sg.Noise(0.4, "band", at_eval=True, noise_band=0.3))
    seed_noise(layer, 5)
    got = fired(layer, current)
    seed_noise(layer, 5)
    wide = sg.LIF(decay=0.5, noise=sg.Noise(0.4, "compare", at_eval=True))
    drawn = layer.normal(torch.zeros(4, 1, 7))[:, 0] * 0.4
    seed_noise(wide, 5)
    expected = loop(current.tolist(), noise=lambda t, m, u: float(drawn[t, m]) if abs(u) < 0.3 else 0.0)
    everywhere = loop(current.tolist(), noise=lambda t, m, u: float(drawn[t, m]))
    assert torch.equal(got[0], expected[0])
    assert torch.equal(fired(wide, current)[0], everywhere[0])


def test_delta_and_sigma_of_every_layer(tiny: Classifier) -> None:
    guard = sg.TGO(deltas=(0.2, 0.4, 0.8), sigmas=(0.0, 0.03, 0.06), lambda_max=1.0)
    guard.prepare(tiny.train())
    assert [present(layer.noise).sigma for layer in spiking(tiny).values()] == [0.0, 0.03, 0.06]
    for layer in spiking(tiny).values():
        layer.noise = None
    hooks, x = guard.start(tiny), torch.rand(4, 1, 8, 8)
    hooks.complete(Step(tiny, x, torch.zeros(4).long()))
    with hooks.watch(tiny, "clean"), sg.tap(tiny, potentials=True) as t:
        tiny(x)
    expected = sum(
        float((d - u.abs()).clamp(min=0).mean())
        for d, u in zip((0.2, 0.4, 0.8), t.potentials.values(), strict=True)
    )
    found = present(hooks.penalty(Step(tiny, x, torch.zeros(4).long(), progress=1.0)))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(UserError, match="2 values, the network 3"):
        sg.TGO(deltas=(0.1, 0.2), sigma=0.0).start(tiny)


# inputs


def test_input_noise_is_fresh_at_every_step(tiny: Classifier) -> None:
    sg.defenses.InputNoise(sigma=0.2).prepare(tiny)
    x = torch.full((64, 1, 8, 8), 0.5)
    out = tiny.before[0](x[None], 3) - 0.5
    assert out.shape == (3, 64, 1, 8, 8)
    assert float(out.mean()) == pytest.approx(0, abs=5 * 0.2 / out.numel() ** 0.5)
    assert float(out.std()) == pytest.approx(0.2, rel=0.05)
    assert abs(float((out[0] * out[1]).mean())) < 5 * 0.04 / out[0].numel() ** 0.5
    assert not torch.equal(tiny(x), tiny(x))


def test_quantized_inputs_lie_on_the_grid_keep_their_mean_and_pass_gradients(tiny: Classifier) -> None:
    sg.defenses.InputQuantization(levels=5).prepare(tiny)
    x = torch.linspace(0, 1, 64).view(1, 1, 8, 8).repeat(400, 1, 1, 1).requires_grad_()
    out = tiny.before[0](x[None], 3)
    seen = out.detach()
    assert float((seen * 4 - (seen * 4).round()).abs().max()) < 1e-5
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
    assert torch.allclose(seen.mean((0, 1)), x[0], atol=5 * 0.125 / 1200**0.5)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert bool((gradient == 3).all())


def test_feel_passes_low_frequencies_and_stops_high_ones_step_by_step() -> None:
    from spikeguard.defenses.inputs import LowPass

    side = torch.arange(32.0)

    def wave(k: int) -> Tensor:
        return (0.5 + 0.3 * torch.cos(2 * math.pi * k * side / 32)).expand(1, 1, 1, 32, 32)

    encode: Input = LowPass((0.5, 0.4375, 0.375, 0.3125))
    for k in (3, 9, 11, 13, 15):
        out = encode(wave(k), 4)
        for t, radius in enumerate((16, 14, 12, 10)):
            expected = wave(k)[0] if k <= radius else torch.full_like(wave(k)[0], 0.5)
            assert torch.allclose(out[t], expected, atol=1e-5), (k, radius)
    image = torch.rand(2, 1, 32, 32).requires_grad_()
    encode(image[None], 4).sum().backward()
    assert float(present(image.grad).abs().sum()) > 0


def test_changes_of_the_input_follow_one_another(tiny: Classifier) -> None:
    sg.defenses.InputNoise(sigma=0.3).prepare(tiny)
    sg.defenses.FEEL(radii=(0.5, 0.4, 0.3), leak=False).prepare(tiny)
    x = torch.rand(2, 1, 8, 8)[None]
    noisy = tiny.before[0](x, 3)
    out = tiny.before[1](noisy, 3)
    assert out.shape == noisy.shape
    for t in range(3):  # each step's own noise passes
        alone = tiny.before[1](noisy[t : t + 1], 3)[t]
        assert torch.allclose(out[t], alone, atol=1e-6)


def test_two_defenses_inside_the_same_neurons_both_act(current: Tensor) -> None:
    from spikeguard.defenses.inputs import Leaks
    from spikeguard.defenses.neural import Gains

    layer = sg.LIF(decay=0.5)
    leaks, gains = Leaks(4, torch.Size([7]), 0.8), Gains(4)
    with torch.no_grad():
        gains.gain.copy_(torch.tensor([0.5, 1.0, 1.5, 2.0]))
    layer.dynamics.extend([leaks, gains])
    expected = loop(current.tolist(), decay=0.8, gain=[[g] * 7 for g in (0.5, 1.0, 1.5, 2.0)])
    assert torch.equal(fired(layer, current)[0].detach(), expected[0])
    gates = Gates(torch.Size([7]), 0.5)
    layer.dynamics.append(gates)
    with torch.no_grad():
        gates.keep.fill_(0.0)
    assert not fired(layer, current)[0].detach().any()


def test_sources_of_randomness_come_back_after_crafting_and_scoring(tiny: Classifier) -> None:
    from spikeguard.wrapping.repeatable import seeded

    sg.defenses.RandHet().prepare(tiny)
    sg.defenses.InputNoise().prepare(tiny)
    seed_noise(tiny, 5)
    x = torch.rand(2, 1, 8, 8)
    tiny(x)
    drawing = [
        as_a(StochasticModule, m)
        for m in (*(la.dynamics[0] for la in spiking(tiny).values()), tiny.before[0])
    ]
    before = [(m.source, present(m.source).calls) for m in drawing]
    with seeded(tiny, 9):
        tiny(x)
    sg.AT(noise="frozen").adversaries(Step(tiny, x, torch.tensor([0, 1])))
    after = [(m.source, present(m.source).calls) for m in drawing]
    assert before == after


def test_a_pass_that_is_only_looked_at_leaves_batch_norm_alone(step: Step) -> None:
    hooks = sg.defenses.ShiftGuard().start(step.net)
    hooks.complete(step)
    assert step.views["clean"].freeze_bn is False
    assert step.views["ShiftGuard"].freeze_bn
    from spikeguard.neurons import frozen_norms

    buffers = [b for m in step.net.modules() if isinstance(m, nn.BatchNorm2d) for b in m.buffers()]
    before = [b.clone() for b in buffers]
    with frozen_norms(step.net):
        step.net(step.x)
    assert all(torch.equal(a, b) for a, b in zip(before, buffers, strict=True))
    step.net(step.x)
    assert not any(torch.equal(a, b) for a, b in zip(before, buffers, strict=True))


def test_guards_of_the_first_layer_refuse_neurons_they_do_not_know(tiny: Classifier) -> None:
    sg.defenses.DLIF().prepare(tiny)
    with pytest.raises(UserError, match="no other change"):
        sg.defenses.FirstLayerGuard().start(tiny)
    with pytest.raises(UserError, match="take 'empirical'"):
        sg.defenses.MPDSGR(moments="batch norm").start(tiny)


def test_feel_wants_a_radius_for_every_step(tiny: Classifier) -> None:
    with pytest.raises(UserError, match="4 values, must have one for each of 3 steps"):
        sg.defenses.FEEL(leak=False).prepare(tiny)
