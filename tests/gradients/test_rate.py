"""Backward passes over a whole sequence: closed forms, forward values unchanged, and attacks with them."""

from typing import Any

import pytest
import torch
from narrow import present
from outputs import Reset
from torch import Tensor

import spikeguard as sg
from spikeguard.data.images import Dataset
from spikeguard.errors import UserError
from spikeguard.gradients.base import Estimator
from spikeguard.gradients.sequence import SequenceGradient
from spikeguard.kernels import compiler, cpp_build
from spikeguard.losses import ce
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import spiking

RULES: list[SequenceGradient] = [
    sg.gradients.BPTR(),
    sg.gradients.RGA(),
    sg.gradients.RGA(0.5),
    sg.gradients.HART(1.0),
    sg.gradients.HART(0.3),
]


def layer_gradient(rule: SequenceGradient, current: Tensor, g: Tensor, layer: sg.LIF | None = None) -> Tensor:
    layer = layer or sg.LIF()
    leaf = current.clone().requires_grad_()
    with sg.tap(layer, backward=rule):
        spikes = layer(leaf)
    assert torch.equal(spikes, layer(current)), "another backward pass changed the forward pass"
    return torch.autograd.grad(spikes, leaf, g)[0]


Case = tuple[Tensor, Tensor]


@pytest.fixture
def case() -> Case:
    generator = torch.Generator().manual_seed(0)
    current, g = (torch.randn(5, 4, 30, generator=generator, dtype=torch.float64) for _ in range(2))
    return 1.5 * current + 0.5, g


@pytest.mark.parametrize(("decay", "threshold", "reset"), [(1.0, 1.0, "hard"), (0.5, 0.8, "soft")])
def test_gradients_are_the_closed_forms(case: Case, decay: float, threshold: float, reset: Reset) -> None:
    """Neuron by neuron, from the papers' formulas."""
    current, g = case
    layer = sg.LIF(decay=decay, threshold=threshold, reset=reset)
    got = {rule: layer_gradient(rule, current, g, layer) for rule in RULES}
    counts = dict.fromkeys(("fired", "no spike", "steep", "flat", "outside"), 0)
    for n in range(4):
        for m in range(30):
            v, fired, potentials = 0.0, 0, []
            for t in range(5):
                h = decay * v + float(current[t, n, m])
                potentials.append(h - threshold)
                s = h >= threshold
                fired += s
                v = (0.0 if s else h) if reset == "hard" else h - threshold * s
            mean = float(current[:, n, m].mean()) / threshold
            counts["fired" if fired else "no spike"] += 1
            counts["steep" if 1 - decay < mean <= 2 else "flat" if 0 <= mean <= 1 - decay else "outside"] += 1
            near = g[:, n, m]
            torch.testing.assert_close(got[sg.gradients.BPTR()][:, n, m], near * (fired > 0))
            for gamma in (0.2, 0.5):
                steep = (1 - gamma + gamma * decay) / (1 + decay)
                slope = steep if 1 - decay < mean <= 2 else gamma if 0 <= mean <= 1 - decay else 0.0
                torch.testing.assert_close(got[sg.gradients.RGA(gamma)][:, n, m], near * slope / threshold)
            for gamma in (1.0, 0.3):
                each = [float(near[t]) * max(0.0, gamma - abs(potentials[t])) / gamma**2 for t in range(5)]
                torch.testing.assert_close(
                    got[sg.gradients.HART(gamma)][:, n, m],
                    torch.full((5,), sum(each) / 5, dtype=torch.float64),
                )
    assert all(v or (k == "flat" and decay == 1.0) for k, v in counts.items()), counts


def test_one_step_of_hart_is_the_triangle(case: Case) -> None:
    current, g = case[0][:1], case[1][:1]
    leaf = current.clone().requires_grad_()
    expected = torch.autograd.grad(sg.LIF(surrogate=sg.surrogates.Triangle(1.0))(leaf), leaf, g)[0]
    torch.testing.assert_close(layer_gradient(sg.gradients.HART(1.0), current, g), expected)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", ["small", "wrn16"])
def test_networks_keep_their_logits_to_the_bit(
    name: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cpp_build.verdict()[0]
    monkeypatch.setattr(compiler, "WORTHWHILE", 0 if native else 2**62)
    options: dict[str, Any] = {"width": 5} if name == "small" else {"widen": 1}
    net = sg.build(
        name, classes=4, in_shape=(2, 16, 16), timesteps=3, neuron=sg.Neuron(decay=0.5), **options
    ).train()
    with torch.no_grad():
        for _ in range(20):
            net(torch.rand(16, 2, 16, 16))
    net.eval()
    x = torch.rand(4, 2, 16, 16)
    logits, before = net(x), {k: v.clone() for k, v in net.state_dict().items()}
    for rule in RULES:
        leaf = x.clone().requires_grad_()
        with sg.tap(net, backward=rule):
            again = net(leaf)
        assert torch.equal(again, logits)
        assert torch.autograd.grad(again.square().sum(), leaf)[0].abs().sum() > 0
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(not layer.requests for layer in spiking(net).values())


@pytest.fixture
def trained(small_net: Classifier) -> Classifier:
    """A network that has learned something: on an untrained one no gradient is better than chance."""
    return small_net


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_attacks_with_them_beat_noise(
    trained: Classifier, little_data: Dataset, rule: SequenceGradient
) -> None:
    x, y, threat = little_data.test.pixels(), little_data.test.y, sg.Linf(0.03)
    got = sg.pgd(trained, x, y, threat, steps=5, restarts=1, gradient=rule)
    assert torch.equal(trained(got.x).argmax(1) != y, got.broken)
    noise = sg.pgd(trained, x, y, threat, steps=1, step_size=0.0, restarts=5)
    assert got.broken.sum() >= noise.broken.sum() + 5, "hardly better than as many random points"


def test_nonsense_is_refused() -> None:
    for make in (
        lambda: sg.gradients.RGA(1.5),
        lambda: sg.gradients.HART(0.0),
        lambda: sg.gradients.HART(float("nan")),
    ):
        with pytest.raises(UserError):
            make()


@pytest.mark.parametrize(
    "rule", [*RULES, sg.gradients.Own(), sg.gradients.SwapSurrogate(sg.surrogates.Atan(4.0))]
)
def test_a_gradient_does_not_depend_on_the_batch_that_an_image_is_part_of(
    rule: Estimator, tiny: Classifier, pair: tuple[Tensor, Tensor]
) -> None:
    """Torch's batch norm gave back a wrong gradient for one image whose strides are ambiguous."""
    x, y = pair
    with rule.open(tiny) as opened:
        whole = opened(x, y, ce)[0]
        for size in (1, 2, 3):
            parts = [opened(a, b, ce)[0] for a, b in zip(x.split(size), y.split(size), strict=True)]
            torch.testing.assert_close(
                torch.cat(parts), whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max())
            )


def test_the_norm_of_one_image_passes_back_a_gradient_in_any_layout() -> None:
    from spikeguard.kernels.norms import normalize

    norm = torch.nn.BatchNorm2d(3).eval()
    present(norm.running_var).copy_(torch.tensor([1.0, 4.0, 9.0]))
    current = torch.randn(5, 4, 3).permute(2, 0, 1)[
        None, None
    ]  # one image, channels last, as a convolution gives
    leaf = current.requires_grad_()
    g = torch.randn(1, 1, 3, 5, 4)
    (found,) = torch.autograd.grad(normalize(norm, leaf, False), leaf, g)
    due = g / (torch.tensor([1.0, 4.0, 9.0]) + norm.eps).sqrt().view(1, 1, 3, 1, 1)
    torch.testing.assert_close(found, due)
