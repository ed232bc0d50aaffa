"""Estimators: relaxed networks, other frameworks' neurons in the autograd graph, BPDA, finite differences."""

from typing import Literal

import pytest
import torch
from fakes import FAKES, Net
from narrow import as_a, stages_of
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.data.images import Dataset
from spikeguard.errors import AttackError, UserError
from spikeguard.gradients import ENSEMBLE, Estimator, Own
from spikeguard.gradients.base import derive
from spikeguard.gradients.pdsg import Shifted
from spikeguard.gradients.spike import custom_nodes
from spikeguard.losses import ce, margin
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Noise, spiking

RELATIVES: dict[str, Estimator] = {
    "soft": sg.gradients.SoftSpikes(),
    "mean field": sg.gradients.MeanField(),
    "twin": sg.gradients.ReLUTwin(),
    "noise-free": sg.gradients.NoiseFree(),
    "per step": sg.gradients.PerStep(),
    "PDSG": sg.gradients.PDSG(),
    "random": sg.gradients.RandomSurrogate(),
    "BPDA": sg.gradients.BPDA(sg.surrogates.Atan(4.0)),
    "learned blend": sg.gradients.LearnedBlend(),
    "activity": sg.gradients.Activity(),
    "threshold first": sg.gradients.ThresholdFirst(pull=2),
    "differences": sg.gradients.ZerothOrder(samples=20),
}


@pytest.fixture
def trained(small_net: Classifier) -> Classifier:
    return small_net


Case = tuple[Tensor, Tensor]


@pytest.fixture
def case(little_data: Dataset) -> Case:
    return little_data.test.pixels()[:40], little_data.test.y[:40]


@pytest.mark.parametrize("name", RELATIVES)
def test_points_are_judged_on_the_model_itself_and_it_is_left_as_it_was(
    trained: Classifier, case: Case, name: str
) -> None:
    x, y = case
    logits, before = trained(x), {k: v.clone() for k, v in trained.state_dict().items()}
    with RELATIVES[name].open(trained) as opened:
        for _ in range(3):
            gradient, value, found = opened(x, y, margin)
    torch.testing.assert_close(found, logits)  # the per-step readout adds up in another order
    if name != "per step":
        assert torch.equal(found, logits)
        torch.testing.assert_close(value, margin(logits, y))
    assert gradient.shape == x.shape
    assert float(gradient.abs().sum()) > 0
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())
    assert all(not layer.requests for layer in spiking(trained).values())


@pytest.mark.parametrize("name", RELATIVES)
def test_attacks_with_them_beat_noise(trained: Classifier, little_data: Dataset, name: str) -> None:
    x, y, threat = little_data.test.pixels(), little_data.test.y, sg.Linf(0.04)
    got = sg.pgd(trained, x, y, threat, steps=8, restarts=1, gradient=RELATIVES[name])
    noise = sg.pgd(trained, x, y, threat, steps=1, step_size=0.0, restarts=5)
    assert torch.equal(trained(got.x).argmax(1) != y, got.broken)
    assert got.broken.sum() >= noise.broken.sum() + 5


def test_soft_gradients_are_exact_for_the_soft_network(tiny: Classifier) -> None:
    """Finite differences of the softened network in float64."""
    net = tiny.double()
    x, y = (
        torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5)),
        torch.tensor([1, 2]),
    )
    with sg.gradients.SoftSpikes(first=3.0, last=3.0).open(net) as opened:
        gradient = opened(x, y, ce)[0]
    step, direction = (
        1e-5,
        torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6)),
    )
    with torch.no_grad(), sg.tap(net, smooth=True, surrogate=sg.surrogates.Sigmoid(3.0)):
        change = (ce(net(x + step * direction), y) - ce(net(x - step * direction), y)) / (2 * step)
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), change, rtol=1e-5, atol=1e-8)


def test_mean_field_is_the_mean_over_the_noise_for_one_layer_and_one_step() -> None:
    layer = sg.LIF(noise=Noise(0.3, at_eval=True)).eval()
    net = nn.Sequential(nn.Flatten(), layer)

    class OneStep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net[1](x.flatten(1)[None])[0]
            return logits

    model, x = OneStep(), torch.linspace(0.2, 1.8, 12).view(2, 6)
    with torch.no_grad():
        drawn = torch.stack([model(x) for _ in range(4000)]).mean(0)
    with sg.tap(model, smooth=True, surrogate=sg.surrogates.Gaussian(0.3), noise=0.0), torch.no_grad():
        law = model(x)
    assert float((drawn - law).abs().max()) < 5 * 0.5 / 4000**0.5
    torch.testing.assert_close(law, 0.5 * (1 + torch.erf((x - 1.0) / 0.3 / 2**0.5)))


def test_the_relu_twin_is_the_network_with_relu(trained: Classifier, case: Case) -> None:
    x, _ = case
    with sg.tap(trained, relu=True), torch.no_grad():
        logits = trained(x)
    at = ((x - trained.mean) / trained.std).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for stage in stages_of(trained):
            at = torch.relu(stage.norm(stage.conv(at[None])[0])) / float(stage.fire.threshold)
            at = torch.nn.functional.avg_pool2d(at, 2) if stage.fire.pool else at
        expected = trained.head(at.flatten(1))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_shifted_follows_its_formula() -> None:
    u = torch.randn(3, 5, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sharpness = Shifted().observe(u)
    for t in range(3):
        for c in range(2):
            spread = u[: t + 1, :, c].std(correction=0)
            torch.testing.assert_close(sharpness[t, :, c], (1 / spread).expand(5, 4, 4))
    spread = 1 / sharpness[2, 0, 0, 0, 0]
    expected = torch.exp(torch.distributions.Normal(0.5 * spread, spread).log_prob(u[2, :, 0]))
    torch.testing.assert_close(
        Shifted().derivative(u[2, :, 0], sharpness[2, :, 0]), expected, rtol=1e-6, atol=1e-9
    )


def test_the_ensemble_has_the_nineteen_published_backward_passes() -> None:
    assert len(ENSEMBLE) == 19


def test_random_surrogates_change_from_step_to_step(trained: Classifier, case: Case) -> None:
    x, y = case
    with sg.gradients.RandomSurrogate(seed=3).open(trained) as opened:
        gradients = [opened(x, y, ce)[0] for _ in range(4)]
    assert any(not torch.equal(gradients[0], g) for g in gradients[1:])
    with sg.gradients.RandomSurrogate(seed=3).open(trained) as opened:
        assert torch.equal(opened(x, y, ce)[0], gradients[0])


def test_threshold_first_brings_potentials_nearer_to_the_threshold(trained: Classifier, case: Case) -> None:
    x, y = case

    def distance(x: Tensor) -> float:
        with torch.no_grad(), sg.tap(trained) as t:
            trained(x)
        return float(sum((u.abs() - 0.1).clamp(min=0).mean() for u in t.potentials.values()))

    got = sg.pgd(
        trained,
        x,
        y,
        sg.Linf(0.03),
        steps=6,
        restarts=1,
        early_stop=False,
        gradient=sg.gradients.ThresholdFirst(pull=6),
    )
    assert distance(got.x) < distance(x)


# other frameworks' neurons: plain torch, custom functions


@pytest.fixture(scope="module")
def foreign() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def test_swapping_in_the_graph_of_a_foreign_network_equals_training_it_so(foreign: Net) -> None:
    """The same weights with another surrogate of their own give the same gradient as a swap from outside."""
    x, y = torch.rand(6, 1, 28, 28), torch.arange(6)
    assert len(custom_nodes(foreign(x.requires_grad_()).sum().grad_fn)) == 6  # two layers, three steps
    for surrogate, settings in (
        (sg.surrogates.Atan(6.0), ("atan", 6.0)),
        (sg.surrogates.Triangle(0.7), ("triangle", 0.7)),
    ):
        twin = Net(surrogate=settings).eval()
        twin.load_state_dict(foreign.state_dict())
        expected, _, logits = derive(twin, x.detach(), y, ce)
        with sg.gradients.SwapSurrogate(surrogate).open(foreign) as opened:
            gradient, _, same = opened(x.detach(), y, ce)
        assert torch.equal(logits, same)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("framework", ["spikingjelly", "snntorch"])
def test_swapping_reaches_the_neurons_of_other_frameworks(framework: str) -> None:
    """A network's own needle of a surrogate is replaced by a useful one.

    Without a line about the framework.
    """
    x, y = torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 3])
    torch.manual_seed(1)
    first, last = nn.Linear(36, 40), nn.Linear(40, 4)
    if framework == "spikingjelly":
        neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
        surrogates = pytest.importorskip("spikingjelly.activation_based.surrogate")

        def made(slope: float) -> nn.Module:
            atan = surrogates.ATan(alpha=slope)
            return as_a(nn.Module, neuron.LIFNode(tau=2.0, surrogate_function=atan, detach_reset=False))

    else:
        snn = pytest.importorskip("snntorch")
        surrogates = pytest.importorskip("snntorch.surrogate")

        def made(slope: float) -> nn.Module:
            return as_a(
                nn.Module, snn.Leaky(beta=0.5, spike_grad=surrogates.atan(alpha=slope), init_hidden=True)
            )

    class Foreign(nn.Module):
        def __init__(self, slope: float) -> None:
            super().__init__()
            self.first, self.fire, self.last = first, made(slope), last

        def forward(self, x: Tensor) -> Tensor:
            forget = getattr(self.fire, "reset" if framework == "spikingjelly" else "reset_mem")
            forget()
            return torch.stack([self.last(self.fire(3 * self.first(x.flatten(1)))) for _ in range(3)]).mean(0)

    needle, useful = Foreign(1e4).eval(), Foreign(2.0).eval()
    expected = derive(useful, x, y, margin)[0]
    with sg.gradients.SwapSurrogate(sg.surrogates.Atan(2.0)).open(needle) as opened:
        got = opened(x, y, margin)[0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    own = derive(needle, x, y, margin)[0]
    assert float(torch.nn.functional.cosine_similarity(own.flatten(1), expected.flatten(1)).median()) < 0.9, (
        "nothing was swapped"
    )


@pytest.mark.parametrize(
    "name",
    [
        "gradient lost in eval",
        "no_grad inside",
        "detached time",
        "quantized input",
        "decoy logits",
        "saturated logits",
    ],
)
def test_bpda_gives_the_gradient_that_a_fake_hides(foreign: Net, name: str) -> None:
    x, y = torch.rand(8, 1, 28, 28), torch.arange(8)
    fake = FAKES[name](foreign)
    clear = derive(foreign, torch.round(x * 7) / 7 if name == "quantized input" else x, y, margin)[0]
    with sg.gradients.BPDA().open(fake) as opened:
        free = opened(x, y, margin)[0]
    assert float(torch.nn.functional.cosine_similarity(free.flatten(1), clear.flatten(1)).min()) > 0.999
    try:
        with Own().open(fake) as opened:
            own = opened(x, y, ce)[0]
    except AttackError:
        return
    closed = torch.nn.functional.cosine_similarity(own.flatten(1), derive(foreign, x, y, ce)[0].flatten(1))
    assert float(closed.median()) < 0.9, "this fake hides nothing"


def test_differences_approach_the_gradient_of_a_smooth_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    x, y = 0.3 + 0.4 * torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])
    exact = derive(model, x, y, margin)[0]
    laws: tuple[Literal["nes", "spsa"], ...] = ("nes", "spsa")
    for law in laws:
        with sg.gradients.ZerothOrder(law, samples=3000, size=0.001).open(model) as opened:
            estimate = opened(x, y, margin)[0]
        assert (
            float(torch.nn.functional.cosine_similarity(estimate.flatten(1), exact.flatten(1)).min()) > 0.97
        )


def test_another_network_gives_its_gradient(trained: Classifier, case: Case) -> None:
    x, y = case
    foreign = nn.Sequential(nn.Flatten(), nn.Linear(196, 10))
    with sg.gradients.Transfer(foreign).open(trained) as opened:
        gradient, _, logits = opened(x, y, ce)
    assert torch.equal(logits, trained(x))
    torch.testing.assert_close(gradient, derive(foreign, x, y, ce)[0])


def test_the_path_through_the_reset_can_be_cut_and_kept(trained: Classifier, case: Case) -> None:
    x, y = case
    gradients = []
    for cut in (True, False):
        with sg.gradients.SwapSurrogate(sg.surrogates.Atan(2.0), detach_reset=cut).open(trained) as opened:
            gradients.append(opened(x, y, ce)[0])
    assert not torch.equal(*gradients)
    assert torch.equal(gradients[0], derive(trained, x, y, ce)[0]), "the recipe's neuron detaches its reset"


def test_nonsense_is_refused() -> None:
    for make in (
        lambda: sg.gradients.SoftSpikes(first=0.0),
        lambda: sg.gradients.SoftSpikes(first=3.0, last=2.0),
        lambda: sg.gradients.MeanField(0.0),
        lambda: sg.gradients.ZerothOrder("hope"),  # type: ignore[arg-type]
        lambda: sg.gradients.ZerothOrder(samples=0),
        lambda: sg.gradients.ThresholdFirst(width=-1.0),
    ):
        with pytest.raises(UserError):
            make()
    with pytest.raises(UserError, match="torch module"), sg.gradients.ReLUTwin().open(lambda x: x):
        pass
