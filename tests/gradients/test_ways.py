"""What a swapped surrogate gives does not depend on how a spike is written."""

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rare_ways import RARE
from torch import Tensor, nn
from ways import THRESHOLD, WAYS, Loop, Net, Way, first, trained, written

import spikeguard as sg
from spikeguard.gradients import ASSG, BPDA, Estimator, Own, SwapSurrogate
from spikeguard.gradients.surrogate import SwapOpened, unread_spikes
from spikeguard.losses import margin
from spikeguard.surrogates import Atan, Surrogate

Fire = Callable[[Tensor], Tensor]
ESTIMATORS: dict[str, Estimator] = {
    "swapped": SwapSurrogate(Atan(2.0)),
    "adaptive": ASSG(start_from_first=True),
    "opened": BPDA(Atan(4.0)),
}


class Case:
    """A trained network in the first way, with its gradients, with or without a reset."""

    def __init__(self, reset: bool) -> None:
        data = sg.load_data("embedded")
        train, test = data.train.balanced(1000), data.test.balanced(20)
        self.x, self.y = test.pixels(), test.y
        self.weights = trained(train.pixels(), train.y, reset)
        self.net = written(first(reset), self.weights)
        self.gradients = {name: self.gradient(self.net, e) for name, e in ESTIMATORS.items()}

    def gradient(self, net: Net, estimator: Estimator) -> Tensor:
        with estimator.open(net) as opened:
            return opened(self.x, self.y, margin)[0].flatten(1)


@pytest.fixture(scope="module")
def cases() -> dict[bool, Case]:
    return {reset: Case(reset) for reset in (True, False)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS + RARE, ids=[w.name for w in WAYS + RARE])
def test_gradients_are_those_of_the_first_way(way: Way, cases: dict[bool, Case]) -> None:
    if way.seen_in in ("SpikingJelly", "snnTorch"):
        pytest.importorskip(way.seen_in.lower())
    case = cases[way.reset]
    net = written(way, case.weights)
    with torch.no_grad():
        torch.testing.assert_close(net(case.x), case.net(case.x))
    for name, estimator in ESTIMATORS.items():
        got = case.gradient(net, estimator)
        assert float(F.cosine_similarity(got, case.gradients[name]).min()) > 0.999, name
    assert unread_spikes(net, case.x, case.y) == set()


def test_the_page_of_ways_is_made_from_the_list() -> None:
    path = Path(__file__).parents[2] / "tools" / "reading_spikes.py"
    spec = importlib.util.spec_from_file_location("reading_spikes", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.PAGE.read_text() == tool.page()


class Levels(torch.autograd.Function):
    """Spikes of -1, 0 and 1, computed where no comparison is seen."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        held = v.detach().numpy()
        return torch.from_numpy(((held > 0.5).astype("float32")) - (held < -0.25).astype("float32"))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Drawn(torch.autograd.Function):
    """Spikes drawn with a probability: they have no potential."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return torch.bernoulli(torch.sigmoid(v))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 0 * grads[0]


class Only(nn.Module):
    """One layer of such spikes."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.function.apply(x * 2 - 1)
        return spikes.flatten(1) @ torch.eye(16, 3)


def test_spikes_of_three_levels_have_two_thresholds() -> None:
    x = torch.linspace(0, 1, 32).view(2, 1, 4, 4)
    with SwapSurrogate(Atan(4.0)).open(Only(Levels)) as opened:
        got = opened(x, torch.zeros(2).long(), lambda z, y: z.sum(1))[0].flatten(1)[:, :3]
    v = (x * 2 - 1).flatten(1)[:, :3]
    u = torch.where((v - 0.5).abs() < (v + 0.25).abs(), v - 0.5, v + 0.25)
    torch.testing.assert_close(got, 2 * Atan(4.0).derivative(u), rtol=1e-4, atol=1e-4)


LOST: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a sum of masks": (lambda u: (u[..., None] > 0).sum(-1).float(), "sum"),
    "any mask": (lambda u: (u[..., None] > 0).any(-1).float(), "any"),
    "a quotient": (lambda u: u / (u.abs() + 1e-20), "div"),
}


@pytest.mark.parametrize(("fire", "name"), LOST.values(), ids=LOST)
def test_spikes_that_no_rule_reads_are_named(fire: Fire, name: str) -> None:
    x, y = torch.rand(8, 1, 4, 4), torch.zeros(8).long()
    model = Loop(lambda v: fire(v - THRESHOLD))
    assert name in unread_spikes(lambda at: model(at.flatten(1)[None])[0] + at.flatten(1), x, y)


def test_honest_networks_have_nothing_unread() -> None:
    """Winners, gates, masks and quantized weights are no spikes whose potential is lost."""

    class Winners(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gate, self.last = nn.Linear(16, 12), nn.Linear(16, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = (x * 3 - 1).clamp(0, 1).flatten(1)
            weight = self.first.weight
            binary = weight + (weight.sign() - weight).detach()
            z = F.linear(x, binary, self.first.bias)
            z = z * (z >= z.topk(6, 1).values[:, -1:]) + torch.where(self.gate(x) > 0, z, 0.1 * z)
            scores: Tensor = self.last(F.relu6(z))
            return scores.masked_fill(torch.arange(4) > 2, -1e9)

    assert unread_spikes(Winners(), torch.rand(8, 1, 4, 4), torch.zeros(8).long()) == set()


def noted(seen: list[str], name: str) -> Surrogate:
    seen.append(name)
    return Atan(2.0)


def test_a_reset_of_its_own_is_no_layer_more(cases: dict[bool, Case]) -> None:
    """Layers are numbered alike, so that what is chosen for each of them is the same."""
    numbers = []
    for name in ("function keeps the membrane", "reset by a comparison of its own"):
        seen: list[str] = []
        net = written(way_named(name), cases[True].weights)
        SwapOpened(net, choose=partial(noted, seen))(cases[True].x, cases[True].y, margin)
        numbers.append(seen)
    assert numbers[0] == numbers[1]


def test_what_cannot_be_read_is_a_finding() -> None:
    x, y = torch.rand(8, 1, 4, 4), torch.zeros(8).long()
    assert unread_spikes(Only(Drawn), x, y) == {"Drawn"}
    assert unread_spikes(Only(Levels), x, y) == set()


def test_a_residual_of_silent_spikes_keeps_its_gradient() -> None:
    """A sum that equals the spikes by chance is no straight-through expression."""

    class Residual(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            silent = (x - 2 > THRESHOLD).float()
            scores: Tensor = (silent + F.relu(x - 1) * 0).flatten(1) + x.flatten(1)
            return scores

    x = torch.rand(2, 1, 2, 2)
    with SwapSurrogate(Atan(2.0)).open(Residual()) as opened:
        got = opened(x, torch.zeros(2).long(), lambda z, y: z.sum(1))[0]
    torch.testing.assert_close(got, 1 + Atan(2.0).derivative(x - 2 - THRESHOLD))


@pytest.mark.parametrize(
    "soft",
    [lambda u: torch.sigmoid(8 * u), lambda u: torch.tanh(8 * u), lambda u: torch.clamp(u + 0.5, 0, 1)],
    ids=["sigmoid", "tanh", "clamp"],
)
def test_what_a_straight_through_expression_detaches_is_no_lock(soft: Callable[[Tensor], Tensor]) -> None:
    """Its soft part is a surrogate, and keeps its slope; the same function elsewhere is opened."""

    def straight(x: Tensor) -> Tensor:
        u = 4 * x - 2
        return (soft(u) + ((u > 0).float() - soft(u)).detach()).flatten(1)

    def once(x: Tensor) -> Tensor:
        u = 4 * x - 2
        return ((u > 0).float() - (part := soft(u)).detach() + part).flatten(1)

    def composed(x: Tensor) -> Tensor:
        u = 4 * x - 2
        part = (soft(u) * 0.9 + 0.3) / 1.2
        return (((u > 0).float() - part).detach() + part).flatten(1)

    def twice(x: Tensor) -> Tensor:
        part = soft(4 * x - 2)
        return (part + ((4 * x - 2 > 0).float() - part).detach()).flatten(1)

    x = torch.linspace(0, 1, 32).view(2, 1, 4, 4)

    def gradient(model: Callable[[Tensor], Tensor], estimator: Estimator) -> Tensor:
        with estimator.open(model) as opened:
            return opened(x, torch.zeros(2).long(), lambda z, y: z.sum(1))[0]

    for model in (straight, once, composed, twice):
        torch.testing.assert_close(gradient(model, BPDA()), gradient(model, Own()))
    opened, own = (gradient(lambda x: soft(4 * x - 2).flatten(1), e) for e in (BPDA(), Own()))
    assert not torch.allclose(opened, own)


def test_functions_are_met_only_while_a_gradient_is_taken(cases: dict[bool, Case]) -> None:
    case = cases[True]
    case.gradient(case.net, ESTIMATORS["swapped"])
    assert "apply" not in vars(torch.autograd.function._SingleLevelFunction)
    before = torch._C.ScriptFunction.__call__
    case.gradient(written(WAYS[0], case.weights), ESTIMATORS["opened"])
    assert torch._C.ScriptFunction.__call__ is before


def test_an_error_inside_leaves_nothing_behind() -> None:
    def failing(x: Tensor) -> Tensor:
        raise ValueError

    with pytest.raises(ValueError), SwapSurrogate(Atan(2.0)).open(failing) as opened:  # noqa: PT011
        opened(torch.rand(1, 1, 2, 2), torch.zeros(1).long(), margin)
    assert "apply" not in vars(torch.autograd.function._SingleLevelFunction)
    assert torch.overrides._get_current_function_mode_stack() == []


EQUAL_AUDITS = (
    "function keeps the membrane",
    "function keeps nothing torch knows of",
    "threshold is a second input",
    "function with setup_context",
    "function fires below",
    "function gives scaled spikes",
    "function of the whole sequence",
    "checkpointed layer",
    "operator of torch.library",
    "function gives spikes and membrane",
    "function writes into its input",
    "layer in nn.DataParallel",
    "reset by a comparison of its own",
    "masks written into a tensor",
    "bare comparison",
    "soft + (hard - soft) detached",
    "hard spikes under no_grad",
)
"""Ways whose audits are compared. The last three have another gradient of their own, or none."""


def way_named(name: str) -> Way:
    return next(w for w in WAYS + RARE if w.name == name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EQUAL_AUDITS)
def test_attacks_break_the_same_images_however_it_is_written(name: str, cases: dict[bool, Case]) -> None:
    case = cases[True]
    net = written(way_named(name), case.weights)
    for estimator in (ESTIMATORS["adaptive"], ESTIMATORS["opened"]):
        settings: dict[str, Any] = {"threat": sg.Linf(4 / 255), "steps": 3, "gradient": estimator}
        broken, expected = (sg.sapgd(m, case.x, case.y, **settings).broken for m in (net, case.net))
        assert expected.any()
        assert torch.equal(broken, expected)


@pytest.mark.filterwarnings("ignore")
def test_audits_say_the_same_however_it_is_written(cases: dict[bool, Case], short_suite: None) -> None:
    """The same images are broken, in the same way if the network's own gradient is the same, too.

    Of two ways; of all 17 with SPIKEGUARD_WAYS=17, in about five minutes.
    """
    case, threat = cases[True], sg.Linf(6 / 255)
    expected = sg.audit(case.net, case.x, case.y, threat, effort="quick")
    for way in map(way_named, EQUAL_AUDITS[: int(os.environ.get("SPIKEGUARD_WAYS", "2"))]):
        found = sg.audit(written(way, case.weights), case.x, case.y, threat, effort="quick")
        assert found.robust_accuracy == expected.robust_accuracy, way.name
        if way.name not in EQUAL_AUDITS[-4:]:
            rows = [[(m.id, m.broken, m.failed) for m in a.record.members] for a in (found, expected)]
            assert rows[0] == rows[1], way.name


class Steps(nn.Module):
    """A whole network that can be scripted, traced and frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        current = self.norm(self.first(x.flatten(1)))
        v = torch.zeros_like(current)
        out = torch.zeros(x.shape[0], 3)
        for _ in range(3):
            v = v * 0.5 + current
            spikes = (v >= 0.3).float()
            v = v - spikes * 0.3
            out = out + self.last(spikes)
        return out / 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", [*ESTIMATORS.values(), BPDA()])
def test_whole_networks_are_read_from_their_scripts(estimator: Estimator) -> None:
    torch.manual_seed(0)
    net, x, y = Steps().eval(), torch.rand(4, 1, 4, 4), torch.arange(4) % 3
    scripted = torch.jit.script(net)
    gradients = []
    for model in (net, scripted, torch.jit.freeze(scripted), torch.jit.trace(net, x)):
        with estimator.open(model) as opened:
            gradients.append(opened(x, y, margin)[0])
    assert float(gradients[0].abs().min()) > 0
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0])
