"""``sg.wrap`` in plain torch: time, outputs, encoders, state, traps."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.auditing.record import description
from spikeguard.wrapping.encoders import ENCODERS
from spikeguard.wrapping.outputs import REDUCTIONS
from spikeguard.wrapping.repeatable import seeded

X = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, u: Tensor) -> Tensor:
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


class Cell(nn.Module):
    """Leaky neurons that keep their potential in ``v``, as a user writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | None = None

    def forward(self, current: Tensor) -> Tensor:
        v = current if self.v is None else 0.5 * self.v + current
        spikes: Tensor = Step.apply(v - 1)  # type: ignore[no-untyped-call]
        self.v = v * (1 - spikes)
        return spikes


def clear(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, Cell):
            module.v = None


def cells() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), Cell(), nn.Linear(32, 5))


def by_hand(net: nn.Module, x: Tensor, steps: int) -> Tensor:
    """The mean over steps of a network that begins without state, ``[N, K]``."""
    clear(net)
    logits = torch.stack([net(x) for _ in range(steps)]).mean(0)
    clear(net)
    return logits


def test_a_wrapped_network_answers_as_its_loop_written_by_hand() -> None:
    net = cells()
    model = sg.wrap(net, timesteps=4, reset=clear, sample=X)
    expected = by_hand(net, X, 4)
    assert torch.equal(model(X), expected)
    assert torch.equal(model(X), model(X))
    assert isinstance(net[2], Cell)
    assert net[2].v is None


def test_an_attack_on_it_is_one_on_the_network() -> None:
    net = cells()
    model = sg.wrap(net, timesteps=4, reset=clear, sample=X)
    y = model(X).argmax(1)
    found = sg.pgd(model, X, y, sg.Linf(0.3), steps=5, restarts=1)
    assert bool(found.broken.any())
    assert torch.equal(by_hand(net, found.x, 4).argmax(1) != y, found.broken)


def test_state_that_no_reset_reaches_is_named_with_what_to_do() -> None:
    net = cells()
    net(X)
    with pytest.raises(sg.UserError, match=r"carries state \(it keeps 2\.v\).*pass reset="):
        sg.wrap(net, timesteps=4, sample=X)


class Shifted(nn.Module):
    """Normalizes by the batch: the class of an image depends on its neighbors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x - x.mean(0))
        return logits


def test_a_network_that_depends_on_the_batch_is_refused() -> None:
    with pytest.raises(sg.UserError, match=r"\d+ % of the predictions change with the rest of the batch"):
        sg.wrap(Shifted(), sample=X)


def test_a_network_without_gradient_is_refused() -> None:
    class Cut(Shifted):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x.detach())
            return logits

    with pytest.raises(sg.UserError, match="no gradient reaches the images in eval mode"):
        sg.wrap(Cut(), sample=X)


class Frozen(Cell):
    """As neurons of SpikingJelly 0.0.0.0.14: in eval mode no gradient passes."""

    def forward(self, current: Tensor) -> Tensor:
        return super().forward(current if self.training else current.detach())


def trapped() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 32), Frozen(), nn.Linear(32, 5)
    ).eval()


def test_the_gradient_that_eval_mode_hides_is_opened_in_the_neurons_only() -> None:
    sg.adapters.add(Frozen, fire="fire", threshold=lambda m: 1.0, reset=lambda m: setattr(m, "v", None))
    try:
        net = trapped()
        model = sg.wrap(net, timesteps=3, sample=X)
        assert any("training mode" in note for note in model.notes)
        leaf = X.clone().requires_grad_()
        logits = model.eval()(leaf)
        assert bool(torch.autograd.grad(logits.sum(), leaf)[0].abs().amax() > 0)
        statistics = copy.deepcopy(net[1].state_dict())
        model(X)
        assert all(torch.equal(net[1].state_dict()[k], v) for k, v in statistics.items())
        assert not any(m.training for m in net.modules())
        assert torch.equal(logits, by_hand_frozen(net, X, 3))
    finally:
        sg.adapters.remove(Frozen)


def by_hand_frozen(net: nn.Module, x: Tensor, steps: int) -> Tensor:
    with torch.no_grad():
        return by_hand(net, x, steps)


def test_the_state_dict_is_that_of_the_network_also_inside_another_one() -> None:
    net = cells()
    model = sg.wrap(net, timesteps=2, reset=clear, sample=X, mean=0.5, std=[0.25])
    assert list(model.state_dict()) == list(net.state_dict())
    outer = nn.Sequential(model, nn.Identity())
    assert list(outer.state_dict()) == [f"0.{name}" for name in net.state_dict()]
    zeros = {name: torch.zeros_like(t) for name, t in net.state_dict().items()}
    outer.load_state_dict({f"0.{name}": t for name, t in zeros.items()})
    assert not any(bool(t.any()) for t in net.state_dict().values())
    model.load_state_dict({name: torch.ones_like(t) for name, t in zeros.items()})
    assert all(bool((t == 1).all()) for t in net.state_dict().values())
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})


def test_modes_and_types_reach_the_network() -> None:
    net = cells()
    model = sg.wrap(net, timesteps=2, reset=clear, sample=X, mean=0.5)
    assert net.training
    assert model.training
    assert not model.eval().model.training
    assert model.double().mean is not None
    assert net[1].weight.dtype == torch.float64
    assert model(X.double()).dtype == torch.float64


class Sequence(nn.Module):
    """Takes a whole sequence ``[T, N, F]``, or ``[N, T, F]``; answers for every step."""

    def __init__(self, batch_first: bool, folded: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.batch_first, self.folded = nn.Linear(16, 5), batch_first, folded

    def forward(self, x: Tensor) -> Tensor:
        if self.folded:
            scores: Tensor = self.linear(x.flatten(1))
            return scores
        time = 1 if self.batch_first else 0
        growing: Tensor = self.linear(x.flatten(2)).cumsum(time)
        return growing


@pytest.mark.parametrize("reduce", ["mean", "sum", "last", "max"])
def test_layouts_and_reductions(reduce: str) -> None:
    steps = Sequence(False).linear(X.flatten(1)) * torch.arange(1, 4).view(3, 1, 1)
    expected = REDUCTIONS[reduce](steps)
    for layout in ("time_first", "batch_first"):
        model = sg.wrap(
            Sequence(layout == "batch_first"),
            timesteps=3,
            layout=layout,
            reduce=reduce,  # type: ignore[arg-type]
            sample=X,
        )
        torch.testing.assert_close(model(X), expected)
    folded = sg.wrap(Sequence(False, folded=True), timesteps=3, layout="folded", sample=X)
    torch.testing.assert_close(folded(X), Sequence(False).linear(X.flatten(1)))


def test_samples_with_a_time_of_their_own() -> None:
    events = torch.rand(6, 3, 2, 2, 4)
    model = sg.wrap(Sequence(False), encoder="frames", layout="time_first", sample=events, reduce="last")
    expected = Sequence(False).linear(events.flatten(2)).sum(1)
    torch.testing.assert_close(model(events), expected)


def test_the_first_spike_is_a_score_with_a_gradient() -> None:
    spikes = torch.zeros(5, 1, 3)
    spikes[1, 0, 0] = spikes[3, 0, 0] = spikes[4, 0, 1] = 1
    spikes.requires_grad_()
    scores = REDUCTIONS["first_spike"](spikes)
    assert scores.tolist() == [[4.0, 1.0, 0.0]]
    gradient = torch.autograd.grad(scores[0, 1], spikes)[0]
    assert bool((gradient[:, 0, 1] > 0).all())


def test_parts_of_an_answer() -> None:
    class Pair(Shifted):
        def forward(self, x: Tensor) -> object:  # type: ignore[override]
            logits = self.net(x)
            return {"spk": logits, "mem": 2 * logits} if self.named else (logits, 2 * logits)

        named = False

    net = Pair()
    logits = net.net(X)
    assert torch.equal(sg.wrap(net, sample=X)(X), logits)
    assert torch.equal(sg.wrap(net, output=1, sample=X)(X), 2 * logits)
    with pytest.raises(sg.UserError, match="a tuple of 2, has no part 2"):
        sg.wrap(net, output=2, sample=X)
    net.named = True
    assert torch.equal(sg.wrap(net, output="mem", sample=X)(X), 2 * logits)
    with pytest.raises(sg.UserError, match="a mapping of 'spk', 'mem', has no part 'logits'"):
        sg.wrap(net, sample=X)


def test_poisson_spikes_at_the_rate_of_the_pixel_and_passes_its_gradient() -> None:
    encoder, x = ENCODERS["poisson"](), torch.full((50, 8), 0.3, requires_grad=True)
    spikes = encoder(x, 100)
    assert set(spikes.detach().unique().tolist()) == {0.0, 1.0}
    deviation = math.sqrt(0.3 * 0.7 / spikes.numel())
    assert abs(float(spikes.mean().detach()) - 0.3) < 4 * deviation
    torch.testing.assert_close(torch.autograd.grad(spikes.mean(0).sum(), x)[0], torch.ones_like(x))


def test_latency_spikes_once_the_brighter_the_earlier() -> None:
    x = torch.tensor([[1.0, 0.5, 0.0, 0.76]], requires_grad=True)
    spikes = ENCODERS["latency"]()(x, 5)
    assert spikes.sum(0).tolist() == [[1.0] * 4]
    assert spikes.argmax(0).tolist() == [[0, 2, 4, 1]]
    steps = torch.arange(5.0).view(-1, 1, 1)
    gradient = torch.autograd.grad((spikes * steps).sum(), x)[0]
    assert gradient[0, 3] < 0  # brighter means earlier


def test_a_random_encoder_makes_a_random_model_that_repeats_by_its_seed() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    model = sg.wrap(net, timesteps=3, encoder="poisson", sample=X)
    assert any("random" in note for note in model.notes)
    assert not torch.equal(model(X), model(X))
    answers = []
    for _ in range(2):
        with seeded(model, 7):
            answers.append(model(X))
    assert torch.equal(*answers)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "steps": (lambda: sg.wrap(cells(), timesteps=0), "timesteps = 0 must be at least 1"),
    "no steps": (lambda: sg.wrap(cells(), layout="time_first"), "needs timesteps="),
    "encoder without steps": (lambda: sg.wrap(cells(), encoder="latency"), "needs timesteps="),
    "normalized spikes": (
        lambda: sg.wrap(cells(), timesteps=2, encoder="poisson", mean=0.5),
        "takes pixels in [0, 1]",
    ),
    "std": (lambda: sg.wrap(cells(), std=0.0, sample=X), "std = 0.0 must be above 0"),
    "layout": (lambda: sg.wrap(cells(), layout="nt"), "must be one of steps, time_first"),  # type: ignore[arg-type]
    "no module": (lambda: sg.wrap(lambda x: x), "must be a Module"),  # type: ignore[arg-type]
    "no shape": (lambda: sg.wrap(nn.Identity()), "pass sample=images"),
    "images": (lambda: sg.wrap(cells(), sample=3 * X), "must lie in [0, 1]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_end_in_one_line(name: str) -> None:
    call, words = WRONG[name]
    with pytest.raises(sg.UserError) as error:
        call()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_dropout_that_keeps_a_mask_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import layer, neuron

    class Old(neuron.IFNode):  # type: ignore[misc]
        """As in 0.0.0.0.14: no gradient in eval mode."""

        def forward(self, x: Tensor) -> Tensor:
            spikes: Tensor = super().forward(x if self.training else x.detach())
            return spikes

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 32), Old(v_threshold=0.2), layer.Dropout(0.5), nn.Linear(32, 5)
    ).eval()
    model = sg.wrap(net, timesteps=3, sample=X)
    assert any("training mode" in note for note in model.notes)
    assert torch.equal(model(X), model(X))


def test_how_it_is_called_is_part_of_what_a_record_says_about_it() -> None:
    described = set()
    for arguments in ({}, {"mean": 0.5}, {"mean": 0.4}, {"std": 0.5}, {"timesteps": 2}):
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
        described.add(description(sg.wrap(net, **arguments, sample=X)))
    assert len(described) == 5
