"""Honest networks of every kind, under every norm and budget: no error, and no warning that is untrue."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from honest import CLASSES, RANDOM, SPIKING, Spiking, Then, fit, honest, images, names
from narrow import as_a
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.auditing import controls, suite
from spikeguard.auditing.member import Member
from spikeguard.auditing.suite import FGSM, NOISE, PGD_20
from spikeguard.gradients import BPDA
from spikeguard.surrogates import Atan
from spikeguard.threat import Threat

TRUE_OF_SPIKES = {"masking"}  # measured, and likely on networks of 24 neurons
TRUE_OF = {
    "large logits": {"saturated-logits"},
    "contrast": {"saturated-logits"},
    "scripted": {"attack-failed"},  # BPDA does not reach into a scripted module
    "keeps the membrane": {"zero-gradient"},  # on most images no potential lies in the surrogate's window
}
BUDGETS = (
    *(sg.Linf(0.0), sg.Linf(0.0002), sg.Linf(1.0)),
    *(sg.L2(0.01), sg.L2(3.0), sg.L1(0.05), sg.L1(6.0)),
)


@pytest.fixture(autouse=True)
def short_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit with a member of each kind; its controls are whole, but for the curve and restarts."""
    bpda = Member(
        "pgd10-bpda", "bpda", sg.pgd, {"steps": 10, "restarts": 1, "loss": "margin"}, BPDA(Atan(4.0))
    )
    square = Member("square20", "scores", sg.square, {"queries": 20})
    monkeypatch.setitem(suite.SUITES, "quick", (NOISE, FGSM, PGD_20, bpda, square))
    monkeypatch.setattr(controls, "CURVE", (0.0, 1.0))
    monkeypatch.setitem(controls.CURVES, "quick", (4, 2))
    monkeypatch.setitem(controls.RUNS, "PGD-20 x 5", controls.RUNS["PGD-20"])
    monkeypatch.setattr(controls, "RANDOM_PAIRS", ())


def raised(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, threat: Threat
) -> tuple[list[str], set[str]]:
    """Errors and warnings of an audit; that its longest attack, of 20 steps, is too short is true."""
    flags = sg.audit(model, x, y, threat, effort="quick").flags
    warnings = {f.id for f in flags if f.level == "warning"}
    return [f.message for f in flags if f.level == "error"], warnings - {"not-converged"}


def test_there_are_more_than_sixteen_honest_networks_and_as_many_idioms() -> None:
    assert len(names()) >= 24
    assert len(SPIKING) >= 10


@pytest.mark.parametrize("name", names())
def test_an_honest_network_raises_no_alarm(name: str) -> None:
    model, x, y = honest(name, 8 if name in RANDOM else 24)
    errors, warnings = raised(model, x, y, sg.Linf(0.05))
    assert errors == []
    assert warnings <= (TRUE_OF_SPIKES if name in SPIKING else set()) | TRUE_OF.get(name, set())


@pytest.mark.parametrize("threat", BUDGETS, ids=str)
@pytest.mark.parametrize("name", ["linear", "spike counts, T = 5"])
def test_no_norm_and_no_budget_makes_an_honest_network_unreliable(name: str, threat: Threat) -> None:
    model, x, y = honest(name)
    errors, warnings = raised(model, x, y, threat)
    assert errors == []
    assert warnings <= (TRUE_OF_SPIKES if name in SPIKING else set())


SHAPES = {
    "1x1": (1, 1, 1),
    "2x2": (1, 2, 2),
    "four channels, not square": (4, 3, 7),
    "one row": (3, 1, 9),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("classes", [2, 3])
def test_no_size_of_image_and_no_number_of_classes_does(shape: tuple[int, ...], classes: int) -> None:
    x, y = images(24, classes, shape)
    net = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 16), nn.ReLU(), nn.Linear(16, classes))
    model = fit(net, x, y, steps=150)
    errors, warnings = raised(model, x, model(x).argmax(1), sg.Linf(0.1))
    assert errors == []
    assert warnings <= {"saturated-logits"}


def _edges(x: Tensor) -> Tensor:
    return (x > 0.5).float()


CONTENT: dict[str, Callable[[Tensor], Tensor]] = {
    "binary": _edges,
    "all black": torch.zeros_like,
    "all white": torch.ones_like,
    "one gray each": lambda x: x.mean((1, 2, 3), keepdim=True).expand_as(x).clone(),
    "very few": lambda x: x[:3],
    "a single one": lambda x: x[:1],
}


@pytest.mark.parametrize("content", CONTENT.values(), ids=CONTENT)
@pytest.mark.parametrize("name", ["contrast", "keeps u"])
def test_no_content_of_the_images_does(name: str, content: Callable[[Tensor], Tensor]) -> None:
    model, x, _ = honest(name)
    x = content(x)
    errors, warnings = raised(model, x, model(x).argmax(1), sg.Linf(0.1))
    assert errors == []
    assert warnings <= (TRUE_OF_SPIKES if name in SPIKING else {"saturated-logits"})


@pytest.mark.parametrize("only", [0, 2])
def test_images_of_one_class_alone_are_no_reason_for_an_alarm(only: int) -> None:
    model, x, y = honest("logits")
    for threat in (sg.Linf(0.0005), sg.Linf(0.3)):
        errors, warnings = raised(model, x[y == only], y[y == only], threat)
        assert (errors, warnings) == ([], set())


def test_the_window_of_a_surrogate_leaves_most_images_without_gradient() -> None:
    model, x, _ = honest("keeps the membrane")
    spiking, potentials = as_a(Spiking, model), list[Tensor]()
    fire = spiking.fire

    def noting(u: Tensor) -> Tensor:
        potentials.append(u)
        return fire(u)

    spiking.fire = noting
    model(x)
    assert float((torch.cat(potentials, 1).abs() < 0.5).any(1).float().mean()) < 0.5


def test_a_network_of_two_classes_that_is_mostly_right_knows_enough() -> None:
    model, x, _ = honest("linear")
    pair = Then(model, lambda z: z[:, :2]).eval()
    y = pair(x).argmax(1)
    y[:2] = 1 - y[:2]
    assert "clean-accuracy-low" not in raised(pair, x, y, sg.Linf(0.01))[1]


def test_where_everything_is_wrong_without_attack_nothing_is_said_about_the_budget() -> None:
    model, x, y = honest("logits")
    errors, warnings = raised(model, x, (y + 1) % CLASSES, sg.Linf(0.05))
    assert (errors, warnings) == ([], {"clean-accuracy-low"})


def test_a_model_without_gradients_is_reliable_where_its_number_is_exact() -> None:
    """A table of hard decisions: with no budget, or with all images broken, there is nothing to find."""
    x, y = images()
    means = torch.stack([x[y == k].flatten(1).mean(0) for k in range(CLASSES)]) > 0.5

    def table(at: Tensor) -> Tensor:
        bright = at.detach().flatten(1) > 0.5
        return -(bright[:, None] != means).float().sum(2)

    assert raised(table, x, table(x).argmax(1), sg.Linf(0.0))[0] == []
    unsure = sg.audit(table, x, table(x).argmax(1), sg.Linf(0.02), effort="quick")
    assert {f.id for f in unsure.flags if f.level == "error"} >= {"no-gradient", "not-broken-at-eps-1"}
    broken = sg.audit(table, x, table(x).argmax(1), sg.Linf(1.0), effort="quick")
    assert broken.robust_accuracy == 0.0
    assert broken.reliable


def test_large_images_of_few_samples_are_fine() -> None:
    x, y = images(6, 3, (1, 300, 300))
    net = nn.Sequential(nn.AvgPool2d(50), nn.Flatten(), nn.Linear(36, 3))
    model = fit(net, x, y)
    for threat in (sg.Linf(0.01), sg.L1(300.0)):
        assert raised(model, x, y, threat)[0] == []


def test_batch_statistics_at_test_stay_an_error() -> None:
    """The true case: the class of an image depends on the others."""
    model, x, y = honest("logits")

    def social(at: Tensor) -> Tensor:
        scores: Tensor = model(at - at.mean(0) + 0.5)
        return scores

    flags = sg.audit(social, x, y, sg.Linf(0.05), effort="quick").flags
    assert "depends-on-batch" in {f.id for f in flags}


def test_saturated_probabilities_and_classes_stay_an_error() -> None:
    model, x, y = honest("logits")
    for after in (
        lambda z: z.softmax(1),
        lambda z: (1e3 * z).softmax(1),
        lambda z: F.one_hot(z.argmax(1), CLASSES).float(),
    ):
        flags = sg.audit(Then(model, after).eval(), x, y, sg.Linf(0.05), effort="quick").flags
        assert "no-logits" in {f.id for f in flags}


def test_a_spiking_network_without_surrogate_stays_an_error() -> None:
    """Spike counts are no excuse: here nothing but a comparison stands behind them."""
    x, y = images()
    model = fit(Spiking(timesteps=1, scores="counts"), x, y)
    as_a(Spiking, model).fire = lambda u: (u > 0).float()
    flags = sg.audit(model, x, y, sg.Linf(0.05), effort="quick").flags
    assert {"no-logits", "no-gradient"} & {f.id for f in flags if f.level == "error"}


def test_a_masked_network_is_caught_at_a_budget_too_small_to_break_anything() -> None:
    """Gradients that lead the other way, at 0.0002: the budget is widened until something breaks."""
    model, x, y = honest("logits")

    def backwards(at: Tensor) -> Tensor:
        true = torch.from_numpy(model(at.detach()).detach().numpy())
        lost: Tensor = model(at) - model(at).detach()
        return true - lost

    ids = {f.id for f in sg.audit(backwards, x, y, sg.Linf(0.0002), effort="quick").flags}
    assert {"no-better-than-noise", "not-broken-at-eps-1"} & ids
