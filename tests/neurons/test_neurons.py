"""Layers of neurons, their noise, and what a tap sees and changes."""

import math
from collections.abc import Callable

import pytest
import torch
from narrow import present

import spikeguard as sg
from spikeguard.errors import UserError
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Spiking, seed_noise, spiking
from spikeguard.surrogates import Surrogate


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sg.Neuron(kind="alif"), "kind = 'alif' must be one of lif, if, plif"),  # type: ignore[arg-type]
        (lambda: sg.Neuron(decay=1.5), "decay = 1.5 must lie in [0, 1]"),
        (lambda: sg.Neuron(threshold=0.0), "threshold = 0.0"),
        (lambda: sg.Neuron(reset="none"), "reset = 'none' must be one of hard, soft"),  # type: ignore[arg-type]
        (lambda: sg.IF(decay=0.5), "must be 1 for kind 'if'"),
        (lambda: sg.PLIF(decay=1.0), "inside (0, 1)"),
        (lambda: sg.Noise(-0.1), "sigma = -0.1"),
        (lambda: sg.Noise(float("nan")), "sigma = nan"),
        (lambda: sg.surrogates.Triangle(width=0), "width = 0"),
        (lambda: sg.LIF()(torch.zeros(0, 2, 3)), "T >= 1"),
        (lambda: sg.LIF()(torch.zeros(5)), "must be [T, N, ...]"),
        (lambda: sg.LIF()(torch.zeros(2, 2, 3), timesteps=4), "must be [T, N, ...]"),
    ],
)
def test_nonsense_is_refused_in_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_state_never_leaks_between_calls_or_batch_sizes() -> None:
    layer, current = sg.LIF(decay=0.9), torch.randn(4, 6, 5)
    first = layer(current)
    layer(torch.randn(7, 2, 5))
    assert torch.equal(layer(current), first)
    assert torch.equal(layer(current[:, :2]), first[:, :2])


@pytest.mark.parametrize(("decay", "threshold"), [(0.9, 0.3), (0.7, 0.1), (1.0, 0.6)])
def test_constants_are_exact_in_float64(decay: float, threshold: float) -> None:
    """0.9 and 0.3 have no short binary form.

    A layer that kept them in float32 would miss ties and drift from a plain loop.
    """
    current = torch.cat(
        [torch.full((4, 1, 5), threshold, dtype=torch.float64), torch.randn(4, 1, 60, dtype=torch.float64)], 2
    )
    layer = sg.LIF(decay=decay, threshold=threshold)
    with sg.tap(layer) as t:
        spikes = layer(current)
    for i in range(65):
        v = 0.0
        for step in range(4):
            h = decay * v + current[step, 0, i].item()
            assert t.potentials[""][step, 0, i].item() == h - threshold
            assert spikes[step, 0, i].item() == (h - threshold >= 0)
            v = 0.0 if h - threshold >= 0 else h
    assert spikes[0, 0, :5].all(), "a tie must fire"


def test_constant_current_equals_its_repetition() -> None:
    layer, current = (
        sg.LIF(decay=0.7, v_init=0.3),
        torch.randn(1, 6, 5, 4, 4).to(memory_format=torch.channels_last_3d),
    )
    assert torch.equal(layer(current, timesteps=4), layer(current.expand(4, -1, -1, -1, -1)))


def test_learned_threshold_and_decay_get_gradients() -> None:
    layer = sg.PLIF(decay=0.5, learn_threshold=True)
    layer(torch.randn(4, 8, 16)).sum().backward()
    assert layer.threshold.grad is not None
    assert layer.threshold.grad.item() < 0
    assert layer.decay_logit.grad is not None
    assert float(layer.decay.detach()) == 0.5


def test_noise_is_drawn_in_training_and_at_inference_only_if_asked() -> None:
    current = torch.randn(4, 8, 32)
    layer = sg.LIF(noise=sg.Noise(0.5))
    assert not torch.equal(layer(current), layer(current))
    layer.eval()
    assert torch.equal(layer(current), layer(current))
    layer.noise = sg.Noise(0.5, at_eval=True)
    assert not torch.equal(layer(current), layer(current))


def test_noise_is_a_function_of_its_seed_and_of_the_sample_not_of_the_batch() -> None:
    current, layer = torch.randn(4, 8, 32), sg.LIF(noise=sg.Noise(0.5))
    seed_noise(layer, 7)
    first = layer(current)
    seed_noise(layer, 7)
    assert torch.equal(layer(current[:, :3]), first[:, :3])
    assert not torch.equal(layer(current), first)


def test_firing_probability_under_noise_is_the_normal_distribution() -> None:
    u, sigma, draws = 0.15, 0.3, 200_000
    layer = sg.LIF(noise=sg.Noise(sigma))
    seed_noise(layer, 1)
    share = float(layer(torch.full((1, draws, 1), 1 + u)).mean())
    expected = 0.5 * (1 + math.erf(u / sigma / math.sqrt(2)))
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / draws)


def test_noise_site_decides_whether_it_lasts() -> None:
    """Below the threshold, with decay 1: membrane noise adds up over time, compare noise does not."""
    spread = {}
    for site in ("compare", "membrane"):
        layer = sg.LIF(decay=1.0, threshold=100.0, noise=sg.Noise(0.5, site))
        seed_noise(layer, 2)
        with sg.tap(layer) as t:
            layer(torch.zeros(9, 20_000, 1))
        spread[site] = [float(s.std()) for s in t.potentials[""]]
    assert max(spread["compare"]) == 0
    assert abs(spread["membrane"][0] - 0.5) < 0.02
    assert abs(spread["membrane"][8] - 1.5) < 0.05


def test_one_draw_is_shared_by_spike_and_reset() -> None:
    """A neuron that fired under noise has potential 0 after a hard reset.

    H at the next step is the current alone.
    """
    layer = sg.LIF(decay=1.0, noise=sg.Noise(1.0))
    seed_noise(layer, 3)
    with sg.tap(layer) as t:
        spikes = layer(torch.full((2, 5000, 1), 0.7))
    h_next = t.potentials[""][1] + 1
    assert torch.allclose(h_next[spikes[0] == 1], torch.tensor(0.7))
    assert torch.allclose(h_next[spikes[0] == 0], torch.tensor(1.4))


def test_tap_reads_every_layer_and_call_and_leaves_nothing_behind(tiny: Classifier) -> None:
    x = torch.rand(5, 1, 8, 8)
    before = tiny(x)
    with sg.tap(tiny) as t:
        tiny(x)
        tiny(x)
    names = list(spiking(tiny))
    assert list(t.potentials) == [*names, *(f"{n}#1" for n in names)]
    assert t.potentials[names[0]].shape == (3, 5, 8, 8, 8)
    assert not t.potentials[names[0]].requires_grad
    assert torch.equal(tiny(x), before)
    assert all(not layer.requests for layer in spiking(tiny).values())


def test_tap_restores_when_the_body_raises(tiny: Classifier) -> None:
    with pytest.raises(RuntimeError), sg.tap(tiny, noise=0.5):
        raise RuntimeError
    assert all(not layer.requests for layer in spiking(tiny).values())


@pytest.mark.parametrize(
    "surrogate",
    [
        sg.surrogates.Atan(8.0),
        sg.surrogates.Triangle(0.2),
        sg.surrogates.StraightThrough(),
        sg.surrogates.Exponential(1.0),
    ],
    ids=repr,
)
def test_another_surrogate_changes_the_gradient_and_no_bit_of_the_forward_pass(
    tiny: Classifier, surrogate: Surrogate
) -> None:
    x = torch.rand(5, 1, 8, 8, requires_grad=True)
    plain = tiny(x)
    (own,) = torch.autograd.grad(plain.sum(), x)
    with sg.tap(tiny, surrogate=surrogate):
        swapped = tiny(x)
        (other,) = torch.autograd.grad(swapped.sum(), x)
    assert torch.equal(plain, swapped)
    assert not torch.equal(own, other)


def test_tapped_potentials_carry_gradients_when_asked(tiny: Classifier) -> None:
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    with sg.tap(tiny, grad=True) as t:
        tiny(x)
    squares = torch.stack([u.square().sum() for u in t.potentials.values()])
    (gradient,) = torch.autograd.grad(squares.sum(), x)
    assert float(gradient.abs().sum()) > 0


def test_tap_noise_repeats_with_its_seed(tiny: Classifier) -> None:
    x, results = torch.rand(5, 1, 8, 8), []
    for seed in (0, 0, 1):
        with sg.tap(tiny, noise=0.5, seed=seed):
            results.append(tiny(x))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_tap_refuses_a_model_without_neurons() -> None:
    with pytest.raises(UserError, match="no neurons that it knows"):
        sg.tap(torch.nn.Linear(2, 2))


def test_smooth_mode_through_a_whole_network_equals_finite_differences(tiny: Classifier) -> None:
    net = tiny.double()
    x, direction, step = (
        torch.rand(2, 1, 8, 8, dtype=torch.float64),
        torch.randn(2, 1, 8, 8, dtype=torch.float64),
        1e-6,
    )
    weight = torch.randn(2, 10, dtype=torch.float64)
    with sg.tap(net, smooth=True):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((net(leaf) * weight).sum(), leaf)
        slope = ((net(x + step * direction) - net(x - step * direction)) * weight).sum() / (2 * step)
    assert abs(float((gradient * direction).sum() - slope.detach())) < 1e-6


def test_layers_are_copied_with_their_settings() -> None:
    import copy

    layer = sg.LIF(decay=0.9, noise=sg.Noise(0.1))
    twin = copy.deepcopy(layer)
    assert isinstance(twin, Spiking)
    assert twin.spec == layer.spec
    assert twin.noise == layer.noise


def test_two_open_taps_are_one_request_and_both_are_notified() -> None:
    layer, current = sg.LIF(decay=0.5), torch.randn(4, 3, 7)
    with (
        sg.tap(layer, surrogate=sg.surrogates.Atan(3.0), potentials=True) as outer,
        sg.tap(
            layer, surrogate=sg.surrogates.Sigmoid(2.0), potentials=True, band=sg.neurons.Band(0.5)
        ) as inner,
    ):
        assert layer.request().surrogate == sg.surrogates.Sigmoid(2.0), "the last one decides"
        layer(current)
    assert torch.equal(outer.potentials[""], inner.potentials[""])
    assert not outer.penalties
    assert len(inner.penalties) == 1


def test_a_layer_normalizes_before_and_pools_after_its_neurons() -> None:
    norm, current = torch.nn.BatchNorm2d(3), 2 * torch.randn(4, 5, 3, 6, 6)
    layer = Spiking(sg.Neuron(decay=0.5), norm=norm, pool=True)
    plain = sg.LIF(decay=0.5)(torch.nn.BatchNorm2d(3)(current.flatten(0, 1)).unflatten(0, (4, 5)))
    expected = torch.nn.functional.avg_pool2d(plain.flatten(0, 1), 2).unflatten(0, (4, 5))
    assert torch.equal(layer(current), expected)
    assert int(present(norm.num_batches_tracked)) == 1
    assert "norm.weight" in layer.state_dict(), "a norm that is the layer's own is kept with it"


def test_a_tap_opened_at_every_step_draws_anew_unless_it_has_a_seed() -> None:
    layer, current = sg.LIF(decay=0.5), torch.ones(3, 4, 50)

    def drawn(times: int, seed: int | None = None) -> list[torch.Tensor]:
        spikes = []
        for _ in range(times):
            with sg.tap(layer, noise=0.5, seed=seed):
                spikes.append(layer(current))
        return spikes

    first, second = drawn(2)
    assert not torch.equal(first, second)
    assert not any(torch.equal(later, spikes) for later in drawn(2) for spikes in (first, second))
    assert torch.equal(*drawn(2, seed=0))
    with sg.tap(layer, noise=0.5, seed=0):
        together = [layer(current) for _ in range(2)]
    assert torch.equal(together[0], first), "seed 0 is where a model's first tap begins"
    assert torch.equal(together[1], second)
    other = sg.LIF(decay=0.5)
    with sg.tap(other, noise=0.5):
        assert torch.equal(other(current), first), "another model begins there, too"
