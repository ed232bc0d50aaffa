"""FGSM, BIM and PGD against torchattacks (installed without its dependencies) on a ReLU network."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.attacks import Attacked
from spikeguard.auditing.suite import AUTOATTACK, AUTOATTACK_RAND

torchattacks = pytest.importorskip("torchattacks")
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]


Trained = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A small ReLU network, trained a little, in float64, with 30 to 70 % robust accuracy at the eps used."""
    torch.manual_seed(0)
    data = sg.load_data("embedded")
    train, test = data.train.balanced(2000), data.test.balanced(200)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)).double()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for epoch in range(8):
        for rows in torch.randperm(2000, generator=torch.Generator().manual_seed(epoch)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(net(train.x[rows].double() / 255), train.y[rows]).backward()
            optimizer.step()
    return net.eval(), test.x.double() / 255, test.y


EPS, STEP, STEPS = 4 / 255, 1 / 255, 10
Ours = Callable[..., Attacked]
Theirs = Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]]
TEXTBOOK: Ours = partial(sg.pgd, steps=STEPS, step_size=STEP, start=False, early_stop=False)
PAIRS: dict[str, tuple[Ours, Theirs]] = {
    "FGSM": (
        partial(TEXTBOOK, steps=1, step_size=EPS),
        lambda m: torchattacks.FGSM(m, eps=EPS),
    ),
    "BIM": (
        lambda *a: sg.bim(*a, steps=STEPS, step_size=STEP, early_stop=False),
        lambda m: torchattacks.BIM(m, eps=EPS, alpha=STEP, steps=STEPS),
    ),
    "PGD": (
        TEXTBOOK,
        lambda m: torchattacks.PGD(m, eps=EPS, alpha=STEP, steps=STEPS, random_start=False),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_textbook_steps_give_the_same_inputs(trained: Trained, name: str) -> None:
    net, x, y = trained
    ours, theirs = PAIRS[name]
    expected = theirs(net)(x, y)
    got = ours(net, x, y, sg.Linf(EPS))
    torch.testing.assert_close(got.x, expected, atol=1e-6, rtol=0)
    assert 0.3 <= float((~got.broken).double().mean()) <= 0.7
    assert torch.equal(got.broken, net(expected).argmax(1) != y)


def test_early_stopping_breaks_everything_that_the_textbook_breaks(trained: Trained) -> None:
    net, x, y = trained
    textbook = TEXTBOOK(net, x, y, sg.Linf(EPS))
    stopped = TEXTBOOK(net, x, y, sg.Linf(EPS), early_stop=True)
    assert (stopped.broken | ~textbook.broken).all()
    fgsm = sg.fgsm(net, x, y, sg.Linf(EPS))
    assert (fgsm.broken | (net(torchattacks.FGSM(net, eps=EPS)(x, y)).argmax(1) == y)).all()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            lambda *a: sg.apgd(*a, steps=50),
            lambda m: torchattacks.APGD(m, eps=EPS, steps=50, loss="ce", seed=0),
        ),
        (
            lambda *a: sg.apgd(*a, steps=50, loss="dlr"),
            lambda m: torchattacks.APGD(m, eps=EPS, steps=50, loss="dlr", seed=0),
        ),
        (
            lambda *a: sg.apgd_targeted(*a, steps=50),
            lambda m: torchattacks.APGDT(m, eps=EPS, steps=50, n_classes=10, seed=0),
        ),
    ],
    ids=["ce", "dlr", "targeted"],
)
def test_apgd_leaves_as_many_as_torchattacks(trained: Trained, ours: Ours, theirs: Theirs) -> None:
    """Starts are random on both sides, so shares are compared: within half a point."""
    net, x, y = trained
    got = ours(net.float(), x.float(), y, sg.Linf(EPS))
    with torch.no_grad():
        expected = net(theirs(net)(x.float(), y)).argmax(1) != y
    net.double()
    assert 0.3 <= float((~got.broken).double().mean()) <= 0.7
    assert abs(float(got.broken.double().mean()) - float(expected.double().mean())) <= 0.005 + 1e-9


@pytest.mark.slow
def test_the_autoattack_preset_leaves_what_torchattacks_leaves(trained: Trained) -> None:
    """Standard protocol on a ReLU network of 30 to 70 % robust accuracy, 200 images: within half a point."""
    net, x, y = trained
    net, x = net.float(), x.float()
    rows = torch.arange(len(x))
    broken = torch.zeros(len(x), dtype=torch.bool)
    for member in AUTOATTACK:
        stand = rows[~broken]
        broken[stand] = member.run(net, x[stand], y[stand], sg.Linf(EPS), 0, stand).broken
    theirs = torchattacks.AutoAttack(net, norm="Linf", eps=EPS, version="standard", n_classes=10, seed=0)
    with torch.no_grad():
        expected = net(theirs(x, y)).argmax(1) != y
    net.double()
    assert 0.3 <= float((~broken).double().mean()) <= 0.7
    assert abs(float(broken.double().mean()) - float(expected.double().mean())) <= 0.005 + 1e-9


@pytest.mark.slow
def test_the_random_preset_leaves_what_torchattacks_leaves(trained: Trained) -> None:
    """The protocol for random models, on a network that is not: its constants are the same."""
    net, x, y = trained
    net, x, y = net.float(), x[:60].float(), y[:60]
    broken = torch.zeros(60, dtype=torch.bool)
    for member in AUTOATTACK_RAND:
        broken |= member.run(net, x, y, sg.Linf(EPS), 0, torch.arange(60)).broken
    theirs = torchattacks.AutoAttack(net, norm="Linf", eps=EPS, version="rand", n_classes=10, seed=0)
    with torch.no_grad():
        expected = net(theirs(x, y)).argmax(1) != y
    net.double()
    assert int((broken != expected).sum()) <= 1
