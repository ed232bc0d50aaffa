"""Attacks that minimize the change, need only classes, or draw at random: against closed forms and APGD."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.attacks import Attacked
from spikeguard.attacks.batch import Batch
from spikeguard.attacks.block_search import block_search
from spikeguard.attacks.cw import cw, cw_minimal
from spikeguard.attacks.fab import boundary_step, fab, minimal
from spikeguard.attacks.random_search import random_noise, random_search, uniform_in_ball
from spikeguard.attacks.rays import rays
from spikeguard.attacks.square import Query, proposal, pulse, square
from spikeguard.errors import AttackError, UserError
from spikeguard.losses import margin
from spikeguard.networks.classifier import Classifier
from spikeguard.threat import Threat

Kind = Callable[[float | Tensor], Threat]
THREATS: dict[str, Kind] = {"linf": sg.Linf, "l2": sg.L2, "l1": sg.L1}
DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}
CASES: dict[str, tuple[Kind, Callable[..., Attacked]]] = {
    "fab linf": (sg.Linf, lambda *a, **k: fab(*a, steps=8, targets=3, restarts=2, **k)),
    "fab l2": (sg.L2, lambda *a, **k: fab(*a, steps=8, targets=3, restarts=2, **k)),
    "fab l1": (sg.L1, lambda *a, **k: fab(*a, steps=8, targets=3, restarts=2, **k)),
    "cw": (sg.L2, lambda *a, **k: cw(*a, steps=15, searches=4, learning_rate=0.05, **k)),
    "rays linf": (sg.Linf, lambda *a, **k: rays(*a, queries=60, **k)),
    "rays l2": (sg.L2, lambda *a, **k: rays(*a, queries=60, **k)),
    "rays l1": (sg.L1, lambda *a, **k: rays(*a, queries=60, **k)),
    "square l2": (sg.L2, lambda *a, **k: square(*a, queries=60, **k)),
    "square l1": (sg.L1, lambda *a, **k: square(*a, queries=60, **k)),
    "block linf": (sg.Linf, lambda *a, **k: block_search(*a, queries=30, **k)),
    "block l2": (sg.L2, lambda *a, **k: block_search(*a, queries=30, **k)),
    "block l1": (sg.L1, lambda *a, **k: block_search(*a, queries=30, **k)),
    "noise linf": (sg.Linf, lambda *a, **k: random_noise(*a, **k)),
    "noise l2": (sg.L2, lambda *a, **k: random_noise(*a, **k)),
    "noise l1": (sg.L1, lambda *a, **k: random_noise(*a, **k)),
    "random search linf": (sg.Linf, lambda *a, **k: random_search(*a, queries=30, **k)),
    "random search l2": (sg.L2, lambda *a, **k: random_search(*a, queries=30, **k)),
    "random search l1": (sg.L1, lambda *a, **k: random_search(*a, queries=30, **k)),
}
EPS: dict[Kind, float] = {sg.Linf: 0.04, sg.L2: 0.3, sg.L1: 2.0}


class Linear(nn.Module):
    """Two classes with a flat border between them.

    The nearest point of the other class is known in closed form.
    """

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.flat = nn.Linear(size, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.flat(x.flatten(1))
        return logits


class OneHot(nn.Module):
    """Nothing but the class."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        return F.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)


Flat = tuple[Linear, Tensor, Tensor, dict[str, Tensor]]


@pytest.fixture
def flat() -> Flat:
    """Model, images so far from the box that it does not matter, labels.

    And the smallest norm that misleads, by norm.
    """
    model, x = Linear(), 0.3 + 0.4 * torch.rand(200, 1, 4, 4)
    with torch.no_grad():
        model.flat.bias.sub_(model(x).mean(0))
        y = model(x).argmax(1)
        weight = model.flat.weight[1] - model.flat.weight[0]
        nearest = {
            name: -margin(model(x), y) / torch.linalg.vector_norm(weight, DUAL[name]) for name in THREATS
        }
        nearest["l1"][nearest["l1"] > 0.3] = torch.nan  # there a single pixel would have to leave the box
    return model, x, y, nearest


@pytest.mark.parametrize("name", THREATS)
def test_fab_finds_the_closed_form(flat: Flat, name: str) -> None:
    model, x, y, nearest = flat
    found, known = minimal(model, x, y, THREATS[name](0.03), steps=20), ~nearest[name].isnan()
    assert known.sum() > 100
    ratio = (found / nearest[name])[known]
    assert ratio.min() >= 1 - 1e-3
    assert ratio.max() <= 1.02


def test_cw_finds_the_closed_form(flat: Flat) -> None:
    model, x, y, nearest = flat
    found = cw_minimal(model, x, y, steps=100)
    far = (
        nearest["l2"] > 0.03
    )  # Adam's first step has length 0.02: 0.01 in w is 0.005 in x, in each of 16 pixels
    assert far.sum() > 100
    ratio = found / nearest["l2"]
    assert ratio.min() >= 1 - 1e-3
    assert ratio[far].max() <= 1.05


SEARCHES: dict[str, tuple[str, Callable[..., Attacked], float]] = {
    "fab linf": ("linf", lambda *a: fab(*a, steps=20), 0.95),
    "fab l2": ("l2", lambda *a: fab(*a, steps=20), 0.95),
    "fab l1": ("l1", lambda *a: fab(*a, steps=20), 0.95),
    "cw": ("l2", lambda *a: cw(*a), 0.95),
    "rays linf": ("linf", lambda *a: rays(*a, queries=300), 0.8),
    "rays l2": ("l2", lambda *a: rays(*a, queries=300), 0.8),
    "rays l1": ("l1", lambda *a: rays(*a, queries=300), 0.8),
    "square linf": ("linf", lambda *a: square(*a, queries=600), 0.8),
    "square l2": ("l2", lambda *a: square(*a, queries=600), 0.6),
    "square l1": ("l1", lambda *a: square(*a, queries=600), 0.8),
    "block linf": ("linf", lambda *a: block_search(*a, queries=200), 0.9),
    "block l2": ("l2", lambda *a: block_search(*a, queries=400), 0.8),
    "block l1": ("l1", lambda *a: block_search(*a, queries=300), 0.8),
    "random search linf": ("linf", lambda *a: random_search(*a, queries=300), 0.8),
    "random search l2": ("l2", lambda *a: random_search(*a, queries=300), 0.8),
    "random search l1": ("l1", lambda *a: random_search(*a, queries=300), 0.8),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_breaks_only_what_can_be_broken_and_nearly_all_of_it(flat: Flat, name: str) -> None:
    model, x, y, nearest = flat
    norm, attack, least = SEARCHES[name]
    eps = float(nearest[norm].nanmedian())
    got, breakable = attack(model, x, y, THREATS[norm](eps)), nearest[norm] <= eps
    assert not (got.broken & (nearest[norm] > eps * (1 + 1e-4))).any()
    assert (got.broken & breakable).sum() >= least * breakable.sum()
    assert torch.equal(model(got.x).argmax(1) != y, got.broken)
    assert torch.equal(got.when > 0, got.broken)


@pytest.mark.parametrize("name", THREATS)
def test_the_way_to_a_border_is_the_shortest_one_inside_the_box(name: str) -> None:
    """The change is feasible, and no random feasible change of the same gain is shorter.

    Where the box allows no such gain it goes to the corner.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(50, 12, generator=generator, dtype=torch.float64)
    gradient = torch.randn(50, 12, generator=generator, dtype=torch.float64)
    gradient[:, :2] = 0
    room = torch.where(gradient < 0, x, 1 - x)
    most = (gradient.abs() * room).sum(1)
    threat = THREATS[name](1.0)
    share = torch.linspace(0.05, 0.95, 50, dtype=torch.float64)
    d = boundary_step(x, -share * most, gradient, threat)
    torch.testing.assert_close((d * gradient).sum(1), share * most)
    assert ((x + d) >= -1e-12).all()
    assert ((x + d) <= 1 + 1e-12).all()
    for _ in range(200):
        other = d + 0.05 * torch.randn(50, 12, generator=generator, dtype=torch.float64)
        other = (x + other).clamp(0, 1) - x
        enough = (other * gradient).sum(1) >= share * most
        assert (threat.length(other) >= threat.length(d) - 1e-12)[enough].all()
    corner = boundary_step(x, -2 * most, gradient, threat)
    torch.testing.assert_close(corner, gradient.sign() * room)
    assert not boundary_step(x, most, torch.zeros_like(x), threat).any()


@pytest.mark.parametrize("name", CASES)
def test_inside_the_budget_and_independent_of_the_batch(tiny: Classifier, name: str) -> None:
    kind, attack = CASES[name]
    tiny.train()
    x = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    y, index = tiny.eval()(x).argmax(1), torch.arange(100, 107)
    tiny.train()
    threat = kind(EPS[kind] * torch.tensor([0.0, 0.2, 0.5, 1.0, 1.0, 2.0, 4.0]))
    whole = attack(tiny, x, y, threat, index=index)
    assert tiny.training
    threat.check(whole.x, x)
    assert torch.equal(tiny.eval()(whole.x).argmax(1) != y, whole.broken)
    assert torch.equal(whole.when >= 0, whole.broken)
    parts = [attack(tiny, x[r], y[r], threat.select(r), index=index[r]) for r in torch.arange(7).split(3)]
    assert torch.equal(whole.broken, torch.cat([p.broken for p in parts]))
    assert whole.forwards == sum(p.forwards for p in parts)
    assert whole.backwards == sum(p.backwards for p in parts)
    torch.testing.assert_close(whole.x, torch.cat([p.x for p in parts]), atol=1e-5, rtol=0)


Trained = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A small ReLU network, trained a little, with 30 to 70 % robust accuracy under Linf 4/255."""
    torch.manual_seed(0)
    data = sg.load_data("embedded")
    train, test = data.train.balanced(2000), data.test.balanced(200)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for epoch in range(8):
        for rows in torch.randperm(2000, generator=torch.Generator().manual_seed(epoch)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(net(train.x[rows] / 255), train.y[rows]).backward()
            optimizer.step()
    return net.eval(), test.x / 255, test.y


def test_fab_on_a_relu_network_is_within_two_points_of_apgd(trained: Trained) -> None:
    net, x, y = trained
    threat = sg.Linf(4 / 255)
    ours, theirs = fab(net, x, y, threat, steps=20), sg.apgd_targeted(net, x, y, threat, steps=50)
    assert 0.3 <= float((~theirs.broken).float().mean()) <= 0.7
    assert float(ours.broken.float().mean()) >= float(theirs.broken.float().mean()) - 0.02


def test_searches_beat_the_control_and_never_the_gradient_by_much(trained: Trained) -> None:
    """On one network: noise breaks least, random search and RayS more, APGD most."""
    net, x, y = trained
    threat = sg.Linf(4 / 255)
    control, scores, labels = (
        f(net, x, y, threat).broken.float().mean() for f in (random_noise, random_search, rays)
    )
    most = sg.apgd(net, x, y, threat, steps=30).broken.float().mean()
    assert control < min(scores, labels)
    assert max(scores, labels) <= most + 0.005


@pytest.mark.parametrize("threat", [sg.Linf(16 / 255), sg.L2(1.5), sg.L1(15.0)], ids=THREATS)
def test_rays_breaks_a_model_that_gives_only_its_class(trained: Trained, threat: Threat) -> None:
    net, x, y = trained
    hidden = OneHot(net)
    with pytest.raises(AttackError, match="no gradient"):
        sg.pgd(hidden, x, y, threat, steps=2)
    open_, shut = rays(net, x, y, threat, queries=300), rays(hidden, x, y, threat, queries=300)
    assert torch.equal(open_.x, shut.x), "RayS used more than the class"
    clean_wrong = net(x).argmax(1) != y
    assert int(shut.broken.sum()) > int(clean_wrong.sum()) + 40


def test_a_pulse_is_a_peak_beside_a_trough() -> None:
    rows = torch.tensor(
        [[1 / 4, 1 / 4, 1 / 4], [1 / 4, 5 / 4, 1 / 4]]
    )  # its middle: both squares of a stack of two
    halves = [half / torch.linalg.vector_norm(half) for half in (rows[1:], -rows)]
    expected = torch.cat(halves)
    torch.testing.assert_close(pulse(3), (expected / torch.linalg.vector_norm(expected)).double())
    assert pulse(1).tolist() == [[-1.0]]
    assert all(float(pulse(s).square().sum()) == pytest.approx(1) for s in (2, 5, 8))


@pytest.mark.parametrize("threat", [sg.L2(0.5), sg.L1(2.0)], ids=["l2", "l1"])
def test_squares_pass_the_budget_on_and_lose_none_of_it(
    threat: Threat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far from the box every proposal is as long as the budget.

    And differs from the last one inside two squares only, but for a common factor.
    """
    sides: list[int] = []
    window = Query.window

    def watched(self: Query, drawn: Tensor, s: int) -> tuple[Tensor, Tensor, Tensor]:
        sides.append(s)
        return window(self, drawn, s)

    monkeypatch.setattr(Query, "window", watched)
    x = torch.full((40, 3, 12, 12), 0.5)
    at, batch = x, Batch.of(x, torch.zeros(40, dtype=torch.int64), threat)
    for query in (0, 1, 60, 300):
        new = proposal(Query(batch, at, 5, query))
        torch.testing.assert_close(threat.length(new - x), torch.full((40,), float(threat.eps)))
        if query:
            assert not torch.equal(new, at)
            kept = (new - x) / (at - x).where(at != x, 1.0)
            usual = kept[at != x].median()
            assert float(((kept - usual).abs() < 1e-3)[at != x].float().mean()) > 0.5
        at = new
    assert set(sides[:2]) == {5}, "4 pixels a side would have no middle"
    assert all(s % 2 for s in sides)


def test_the_uniform_half_of_the_control_fills_the_ball() -> None:
    """A ball's radius to the power of its dimension is uniform.

    Mean 1/2, in every norm, within five standard errors.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.full((4000, 1, 2, 2), 0.5)
    for kind in THREATS.values():
        u, share = 2 * torch.rand(x.shape, generator=generator) - 1, torch.rand(4000, generator=generator)
        radius = kind(0.1).length(uniform_in_ball(u, share, x, kind(0.1))) / 0.1
        assert radius.max() <= 1 + 1e-5
        assert abs(float((radius**4).mean()) - 0.5) < 5 / (12 * 4000) ** 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y: fab(m, x, y, sg.Linf(0.1), steps=0), "fab: steps = 0"),
        (lambda m, x, y: fab(m, x, y, sg.L2(0.1), restarts=0), "restarts = 0"),
        (lambda m, x, y: minimal(m, x, y, sg.L1(0.1), targets=0), "targets = 0"),
        (lambda m, x, y: cw(m, x, y, sg.L2(0.1), searches=0), "searches = 0"),
        (lambda m, x, y: cw(m, x, y, sg.L2(0.1), learning_rate=float("nan")), "learning_rate = nan"),
        (lambda m, x, y: cw(m, x, y, sg.Linf(0.1)), "cw is an attack under L2, not under Linf"),
        (lambda m, x, y: rays(m, x, y, sg.Linf(0.1), queries=0), "queries = 0"),
        (lambda m, x, y: square(m, x, y, sg.L2(0.1), queries=0), "queries = 0"),
        (lambda m, x, y: square(m, torch.zeros(7, 16), y, sg.L1(0.1)), "must be [N, C, H, W]"),
        (lambda m, x, y: random_noise(m, x, y, sg.L1(0.1), tries=0), "tries = 0"),
        (lambda m, x, y: random_search(m, x, y, sg.L1(0.1), queries=0), "queries = 0"),
        (lambda m, x, y: random_search(m, torch.zeros(7, 16), y, sg.L1(0.1)), "must be [N, C, H, W]"),
        (lambda m, x, y: random_noise(m, x, y, sg.L1(0.1), index=torch.arange(3)), "index has shape (3,)"),
        (lambda m, x, y: cw(m, x, y, sg.L2(0.1), index=torch.arange(3)), "index has shape (3,)"),
        (lambda m, x, y: rays(m, x, y + 9, sg.Linf(0.1)), "labels lie in"),
        (lambda m, x, y: fab(m, x * 255, y, sg.Linf(0.1)), "divide by 255"),
    ],
)
def test_nonsense_is_refused_in_one_line(call: Callable[..., object], message: str) -> None:
    with pytest.raises(UserError) as error:
        call(Linear(), torch.rand(7, 1, 4, 4), torch.ones(7, dtype=torch.int64))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
