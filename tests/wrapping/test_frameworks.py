"""Networks in the style of each framework's tutorials: found out how to call them, wrapped, attacked."""

import copy
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from nets import NETS, spikingjelly
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.auditing import checks
from spikeguard.auditing.record import weights
from spikeguard.errors import SpikeguardWarning
from spikeguard.wrapping.guess import guess, suggestion
from spikeguard.wrapping.wrapped import Wrapped

X = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
T = 4


def made(name: str) -> nn.Module:
    package, factory, _ = NETS[name]
    pytest.importorskip(package)
    torch.manual_seed(0)
    return factory()


def wrapped(name: str, net: nn.Module) -> Wrapped:
    found = guess(net, X)
    assert found is not None
    return sg.wrap(net, **vars(found), sample=X)


def loop(net: Callable[[Tensor], Tensor], reset: Callable[[], object]) -> Tensor:
    """The mean answer of T steps after a reset, by hand."""
    reset()
    steps = torch.stack([net(X) for _ in range(T)]).mean(0).detach()
    reset()
    return steps


def by_hand(name: str, net: Any) -> Tensor:
    """Logits as the framework's own tutorials compute them."""
    sequence = X.expand(T, *X.shape)
    if name.startswith("spikingjelly"):
        functional = import_module("spikingjelly.activation_based.functional")
        own = name == "spikingjelly, multi step"
        if own or name.endswith("own loop"):
            functional.reset_net(net)
            logits: Tensor = net(sequence).mean(0) if own else net(X)
            functional.reset_net(net)
            return logits.detach()
        return loop(net, lambda: functional.reset_net(net))
    if name == "snntorch, own loop":
        return net(X)[0].mean(0).detach()  # type: ignore[no-any-return]
    if name == "snntorch, hidden state":
        return loop(lambda x: net(x)[0], lambda: [m.reset_mem() for m in (net[2], net[4])])
    if name == "norse":
        state, answers = None, []
        for x in sequence:
            answer, state = net(x, state)
            answers.append(answer)
        return torch.stack(answers).mean(0).detach()
    fresh = copy.deepcopy(net)
    if name == "sinabs":
        return fresh(sequence.transpose(0, 1)).mean(1).detach()  # type: ignore[no-any-return]
    rows = []
    for x in X:  # a layer that was made for batches of one
        net[1].reset_states()
        rows.append(net(x.expand(T, *x.shape)).mean(0))
    return torch.stack(rows).detach()


@pytest.mark.parametrize("name", NETS)
def test_a_network_is_called_as_its_framework_does(name: str) -> None:
    net = made(name)
    line = suggestion(net, X)
    assert line.startswith(f"use sg.wrap(model{', ' if NETS[name][2] else ''}{NETS[name][2]})")
    assert ("with the T it was trained with" in line) == ("=T" in line)
    net = made(name)
    model = wrapped(name, net)
    expected = by_hand(name, made(name))
    torch.testing.assert_close(model(X), expected)
    sequence = X.expand(T, *X.shape)
    first = {"spikingjelly, multi step": sequence, "sinabs": sequence.transpose(0, 1)}
    net(first.get(name, X))  # the user's own call leaves state
    torch.testing.assert_close(model(X), expected)
    assert float(expected.std(0).min()) > 0, "a network that answers all images the same shows nothing"


def held(net: nn.Module) -> list[tuple[str, int]]:
    """What every module refers to, by identity."""
    return [
        (f"{name}.{key}", id(inner))
        for name, module in net.named_modules()
        for key, value in vars(module).items()
        for inner in (value.values() if isinstance(value, dict) else [value])
    ]


@pytest.mark.parametrize("name", NETS)
def test_a_call_leaves_the_network_as_it_was(name: str) -> None:
    net = made(name)
    model = wrapped(name, net).eval()
    before = held(net)
    first = model(X)
    model(X[:5])
    assert held(net) == before
    assert torch.equal(model(X), first)
    logits = [model(X), model(X)]  # the graphs of two calls live side by side
    sum(z.sum() for z in logits).backward()


def test_only_the_neurons_of_this_network_are_reset() -> None:
    pytest.importorskip("snntorch")
    net, other = made("snntorch, hidden state"), made("snntorch, hidden state")
    other(X)
    memory = other[2].mem  # type: ignore[index]
    wrapped("snntorch, hidden state", net)(X)
    assert other[2].mem is memory  # type: ignore[index]


NEVER_RESET = ("spikingjelly, single step", "spikingjelly, own loop", "snntorch, hidden state", "sinabs")


@pytest.mark.parametrize("name", NEVER_RESET[:3])
def test_an_attack_on_a_network_that_is_never_reset_says_what_to_write(name: str) -> None:
    net = made(name)
    score = net if name.startswith("spikingjelly") else First(net)
    y = torch.zeros(len(X), dtype=torch.int64)
    arguments = re.escape(NETS[name][2].replace(", output=0", ""))
    for attack in (sg.pgd, sg.square, sg.rays, sg.fab):
        with pytest.warns(SpikeguardWarning, match=rf"carries state.*use sg\.wrap\(model(, )?{arguments}\)"):
            attack(score, X, y, sg.Linf(0.1))


class First(nn.Module):
    """A user's own wrapper, which takes the spikes and forgets the reset."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.net(x)[0]
        return spikes


def test_an_audit_of_one_stops_early_and_says_what_to_write(tmp_path: Any) -> None:
    net = made("spikingjelly, single step").eval()
    y = torch.zeros(len(X), dtype=torch.int64)
    result = sg.audit(net, X, y, sg.Linf(0.1), out=tmp_path)
    assert [f.id for f in result.flags if f.level == "error"] == ["state-carried-over"]
    assert "use sg.wrap(model, timesteps=T)" in result.flags[0].message
    assert result.attacks == ()
    assert "no attack ran" in result.verdict
    assert set(result.record.left_out.values()) == {"the model carries state from call to call"}
    again = sg.verify(result.record, tmp_path, sg.wrap(net, timesteps=4, sample=X), X, y)
    assert not [line for line in again.wrong if "verdict" in line or "member" in line]


def test_answers_of_several_parts_name_the_argument() -> None:
    net = made("snntorch, own loop")
    y = torch.zeros(len(X), dtype=torch.int64)
    for call in (sg.pgd, sg.audit):
        with pytest.raises(sg.UserError, match=r"sg\.wrap\(model, output=0\)"):
            call(net, X, y, sg.Linf(0.1))


def test_a_sequence_network_given_images_names_its_layout() -> None:
    net = made("spikingjelly, multi step")
    with pytest.raises(sg.UserError, match=r"sg\.wrap\(model, timesteps=T, layout='time_first'\)"):
        sg.pgd(net, X, torch.zeros(len(X), dtype=torch.int64), sg.Linf(0.1))


def test_the_steps_that_a_network_names_are_taken() -> None:
    pytest.importorskip("spikingjelly")
    net = spikingjelly()
    net.T = 6  # type: ignore[assignment]
    assert suggestion(net, X) == "use sg.wrap(model, timesteps=6)"


class BatchFirst(nn.Module):
    """Turns its input into what the framework takes, and the answer back."""

    def __init__(self) -> None:
        super().__init__()
        self.net = made("spikingjelly, multi step")

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.net(x.transpose(0, 1))
        return answers.transpose(0, 1)


def test_the_layout_is_the_one_in_which_images_do_not_meet() -> None:
    assert suggestion(BatchFirst(), X).startswith("use sg.wrap(model, timesteps=T, layout='batch_first')")


def test_frames_of_events_are_seen_as_such() -> None:
    events = torch.rand(8, 5, 1, 8, 8)
    assert suggestion(made("spikingjelly, multi step"), events) == (
        "use sg.wrap(model, layout='time_first', encoder='frames')"
    )
    assert suggestion(made("spikingjelly, single step"), events) == "use sg.wrap(model, encoder='frames')"


def test_images_are_not_taken_for_steps_where_neurons_are_silent() -> None:
    """A loop over the first dimension also runs over images, and a silent network shows no difference."""
    pytest.importorskip("norse")
    conv = import_module("norse.torch.models.conv")
    x = torch.rand(4, 1, 28, 28)
    assert suggestion(conv.ConvNet(), x).startswith("use sg.wrap(model, timesteps=T, layout='time_first')")


def test_no_line_where_nothing_helps() -> None:
    assert suggestion(nn.Linear(3, 2), X) == ""
    assert suggestion(lambda x: x, X) == ""


class Reset(nn.Module):
    """A sinabs network whose own forward resets it, as its documents say."""

    def __init__(self) -> None:
        super().__init__()
        self.net = made("sinabs")

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:  # type: ignore[attr-defined]
            if hasattr(layer, "reset_states"):
                layer.reset_states()
        scores: Tensor = self.net(x.expand(T, *x.shape).transpose(0, 1)).mean(1)
        return scores


def test_membranes_in_the_state_dict_are_no_part_of_the_model() -> None:
    net = Reset().eval()
    y = net(X).argmax(1)  # with a graph: the membranes have one now
    before = checks.contents(net), weights(net)
    assert checks.check_model(net, X, y, False).findings.keys() <= {"spikes-unread"}
    net(X[:3])
    assert (checks.contents(net), weights(net)) == before
    net.net[1].weight.data[0, 0] += 1  # type: ignore[index]
    assert weights(net) != before[1]
