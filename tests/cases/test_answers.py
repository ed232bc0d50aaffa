"""Models that answer with more, or other, than logits: taken where there is no doubt, else one line."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from narrow import wrong
from strangers import ATTACKS, LINF, X, Y, net, pgd, refused
from torch import Tensor, nn

import spikeguard as sg

NET = net()
Named = namedtuple("Named", "hidden logits")


@dataclass
class Answer:
    out: Tensor
    rate: float


@dataclass
class Recorded:
    out: Tensor
    membrane: Tensor


TAKEN: dict[str, Callable[[Tensor], Any]] = {
    "(logits, None)": lambda x: (NET(x), None),
    "(logits, a number)": lambda x: (NET(x), torch.tensor(0.5)),
    "list of one": lambda x: [NET(x)],
    "dictionary": lambda x: {"logits": NET(x), "features": x},
    "dictionary of one tensor": lambda x: {"out": NET(x), "name": "net"},
    "object with logits": lambda x: SimpleNamespace(logits=NET(x), hidden=x),
    "dataclass of one tensor": lambda x: Answer(NET(x), 0.1),
    "named tuple": lambda x: Named(x.flatten(1), NET(x)),
}
DOUBTFUL: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "(spikes, membrane)": (lambda x: (NET(x).gt(0).float(), NET(x)), "tuple of (Tensor"),
    "list of heads": (lambda x: [NET(x), NET(x)], "list of (Tensor"),
    "dictionary of two": (lambda x: {"a": NET(x), "b": NET(x)}, "dict of a: Tensor"),
    "dataclass of two": (
        lambda x: Recorded(NET(x), NET(x)),
        "Recorded of out: Tensor (8, 4), membrane",
    ),
    "sparse": (lambda x: NET(x).to_sparse(), "a sparse tensor"),
    "nested": (lambda x: torch.nested.nested_tensor(list(NET(x)), layout=torch.jagged), "a nested tensor"),
    "without values": (lambda x: NET(x).to("meta"), "a meta tensor"),
    "packed": (lambda x: nn.utils.rnn.pack_sequence(list(NET(x))), "a PackedSequence"),
    "None": (lambda x: None, "None"),
    "text": (lambda x: "cat", "a str"),
    "classes": (lambda x: NET(x).argmax(1), "torch.int64 of shape"),
    "one-hot integers": (lambda x: torch.nn.functional.one_hot(NET(x).argmax(1), 4), "torch.int64"),
    "every step": (lambda x: torch.stack([NET(x)] * 3), "shape (3, "),
    "steps last": (lambda x: torch.stack([NET(x)] * 3, 2), "shape (8, 4, 3)"),
    "a generator": (lambda x: (row for row in NET(x)), "a generator"),
    "an array of text": (lambda x: NET(x).detach().numpy().astype(str), "array of"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_an_answer_without_doubt_gives_the_numbers_of_plain_logits(name: str) -> None:
    assert torch.equal(pgd(TAKEN[name]), pgd(NET))


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_takes_a_dictionary(attack: str) -> None:
    found, plain = (ATTACKS[attack](model, X, Y) for model in (TAKEN["dictionary"], NET))
    assert torch.equal(found.x, plain.x)


@pytest.mark.parametrize("name", DOUBTFUL)
@pytest.mark.parametrize("attack", ["pgd", "square", "rays"])
def test_a_doubtful_answer_is_named_in_one_line(name: str, attack: str) -> None:
    model, word = DOUBTFUL[name]
    refused(lambda: ATTACKS[attack](model, X, Y), "the model", "must", "logits [N, classes]", word)


def test_an_audit_takes_and_refuses_the_same(short_suite: None) -> None:
    refused(lambda: sg.audit(DOUBTFUL["list of heads"][0], X, Y, LINF, effort="quick"), "list of (Tensor")
    tuples, plain = (sg.audit(m, X, Y, LINF, effort="quick") for m in (TAKEN["(logits, None)"], NET))
    assert tuples.robust_accuracy == plain.robust_accuracy
    assert tuples.record.first_by == plain.record.first_by


def test_an_array_has_no_gradient_and_black_box_attacks_work_on_it() -> None:
    model = lambda x: NET(x).detach().numpy()  # noqa: E731
    refused(lambda: pgd(model), "no gradient reaches the input")
    assert torch.equal(ATTACKS["square"](model, X, Y).broken, ATTACKS["square"](NET, X, Y).broken)


def test_a_part_is_named_as_wrap_takes_it() -> None:
    model, _ = DOUBTFUL["dataclass of two"]
    refused(lambda: pgd(model), "sg.wrap(model, output='out') takes the first part")
    assert torch.equal(pgd(sg.wrap(Around(model), output="out", sample=X)), pgd(NET))
    line = refused(lambda: pgd(lambda x: 3), "answers with a int")
    assert "first part" not in line


class Around(nn.Module):
    """A module of a function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize("name", ["sparse", "without values"])
def test_a_module_of_such_answers_is_one_line_as_well(name: str) -> None:
    """Ways to wrap a module are tried for the hint."""
    model, word = DOUBTFUL[name]
    refused(lambda: pgd(Around(model)), word)


def test_verify_reads_the_same_answers(tmp_path: Path, short_suite: None) -> None:
    result = sg.audit(NET, X, Y, LINF, effort="quick", out=tmp_path)
    check = sg.verify(result.record, tmp_path, TAKEN["dictionary"], wrong(X.numpy()), wrong(Y.tolist()))
    assert check.held == check.claimed
