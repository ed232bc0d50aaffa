"""Models whose own code raises: one line that says on what, and with what; their exception is the cause."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from narrow import applied
from strangers import ATTACKS, LINF, WEIGHT, X, Y, net, pgd, refused
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.errors import UserError

NET = net()


class Remembers(nn.Module):
    """Nobody resets its membranes."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        potential: Tensor = (0.5 * self.v + NET(x)).detach()
        self.v = potential
        return potential


class Raises(Exception):
    """An exception of the model's own, whose message has two lines."""


def raises(x: Tensor) -> None:
    raise Raises("first line\nsecond line")


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> None:
        raise ZeroDivisionError("in the backward pass")


MODELS: dict[str, tuple[Callable[..., Any], str]] = {
    "wants 3 channels": (nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), "3 channels"),
    "batch size written in": (lambda x: NET(x.reshape(12, 1, 8, 8)), "(8, 1, 8, 8)"),
    "a second argument": (lambda x, t: NET(x), "TypeError"),
    "no argument": (lambda: None, "TypeError"),
    "membranes left over": (Remembers(), "keep no state"),
    "squeezes a batch of one": (lambda x: NET(x[:1]).squeeze(), "shape (4,)"),
    "an error of its own": (raises, "Raises: first line"),
    "float16 parameters": (net().half(), "parameters are torch.float16"),
    "no forward": (nn.Module(), "NotImplementedError"),
    "on the meta device": (net().to("meta"), "meta device"),
    "averages over the batch": (lambda x: NET(x).mean(0, keepdim=True), "for 8 images"),
}


@pytest.mark.filterwarnings("ignore:.*carries state:spikeguard.errors.SpikeguardWarning")
@pytest.mark.parametrize("attack", ["pgd", "square", "rays", "targeted"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_fails_is_told_of_in_one_line(name: str, attack: str) -> None:
    model, word = MODELS[name]
    refused(lambda: ATTACKS[attack](model, X, Y), "the model", word)


@pytest.mark.parametrize("name", ["wants 3 channels", "a second argument", "an error of its own"])
def test_an_audit_says_the_same(name: str) -> None:
    model, word = MODELS[name]
    refused(lambda: sg.audit(model, X, Y, LINF, effort="quick"), "the model fails on", word)


def test_the_models_own_exception_is_the_cause() -> None:
    with pytest.raises(UserError) as error:
        pgd(raises)
    assert isinstance(error.value.__cause__, Raises)
    assert "torch.float32 images of shape (8, 1, 8, 8)" in str(error.value)


def test_a_backward_pass_that_raises_is_one_line_with_its_cause() -> None:
    with pytest.raises(UserError, match="backward pass fails") as error:
        pgd(lambda x: NET(applied(Backward, x)))
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_state_of_another_batch_size_is_said_by_the_audit_too() -> None:
    refused(lambda: sg.audit(Remembers(), X, Y, LINF, effort="quick"), "keep no state")


def test_a_source_of_transfer_that_fails_is_named() -> None:
    transfer = sg.gradients.Transfer(MODELS["wants 3 channels"][0])
    refused(lambda: sg.pgd(NET, X, Y, LINF, steps=1, gradient=transfer), "3 channels")


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (print, "is no model"),
        (len, "is no model"),
        (nn.Linear, "is a class"),
        (None, "not callable"),
        ("net.pt", "not callable"),
        ((NET, 3), "not callable"),
        (WEIGHT, "not callable"),
        ({"model": NET}, "not callable"),
    ],
)
def test_what_can_be_no_model_is_refused_before_it_is_called(
    model: Any, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for call in (lambda: pgd(model), lambda: sg.audit(model, X, Y, LINF, effort="quick")):
        refused(call, word)
    assert capsys.readouterr().out == ""


class Unprintable(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise ValueError("no")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Unprintable(), "(Unprintable)"),
        (RuntimeError("\x1b[31mred\nmore"), "(RuntimeError: \\x1b[31mred)"),
        (SystemExit(3), "(SystemExit: 3)"),
    ],
)
def test_whatever_a_model_raises_is_one_line_and_the_cause(error: BaseException, said: str) -> None:
    def model(x: Tensor) -> Tensor:
        raise error

    with pytest.raises(UserError) as told:
        pgd(model)
    assert said in str(told.value)
    assert told.value.__cause__ is error


class NoEval(nn.Module):
    """Its ``eval()`` fails."""

    def eval(self) -> "NoEval":
        raise ZeroDivisionError("in eval")

    def forward(self, x: Tensor) -> Any:
        return NET(x)


class Unhashable(nn.Module):
    """torch keeps modules in sets."""

    __hash__ = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        return NET(x)


@pytest.mark.parametrize(
    ("model", "word"), [(NoEval(), "eval() fails (ZeroDivisionError"), (Unhashable(), "unhashable type")]
)
def test_what_torch_cannot_do_with_a_module_is_one_line(model: nn.Module, word: str) -> None:
    for call in (lambda: pgd(model), lambda: sg.audit(model, X, Y, LINF, effort="quick")):
        refused(call, word)


def exported(x: Tensor, dynamic: bool) -> nn.Module:
    batch = {0: torch.export.Dim("n", min=1, max=64)} if dynamic else None
    return torch.export.export(net(), (x,), dynamic_shapes=(batch,)).module()


FIXED: dict[str, Callable[[], nn.Module]] = {
    "torch.jit.freeze": lambda: torch.jit.freeze(torch.jit.script(net())),
    "frozen inside": lambda: nn.Sequential(torch.jit.freeze(torch.jit.script(net())), nn.Dropout()),
    "torch.export": lambda: exported(X, dynamic=True),
    "exported inside": lambda: nn.Sequential(exported(X, dynamic=True), nn.Dropout()),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", FIXED)
def test_parts_without_a_mode_are_taken(name: str) -> None:
    """Neither a frozen script nor an exported network can be put into eval mode."""
    model = FIXED[name]()
    modes = [m.training for m in model.modules() if hasattr(m, "training")]
    assert torch.equal(pgd(model), pgd(NET))
    assert [m.training for m in model.modules() if hasattr(m, "training")] == modes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_audit_takes_a_frozen_script(short_suite: None) -> None:
    first_by = [
        sg.audit(m, X, Y, LINF, effort="quick").record.first_by for m in (net(), FIXED["torch.jit.freeze"]())
    ]
    assert first_by[0] == first_by[1]


def test_a_network_exported_for_one_batch_size_is_one_line() -> None:
    refused(lambda: pgd(exported(X, dynamic=False)), "the model fails on", "any number of images")


def test_lazy_layers_and_a_single_logit_are_refused() -> None:
    refused(lambda: pgd(nn.Sequential(nn.Flatten(), nn.LazyLinear(4))), "lazy layers", "call it once")
    for call in (lambda: pgd(lambda x: NET(x)[:, :1], y=0 * Y), lambda: audit_of(lambda x: NET(x)[:, :1])):
        refused(call, "one logit", "torch.cat([-z, z], 1)")


def audit_of(model: Callable[[Tensor], Tensor]) -> object:
    return sg.audit(model, X, 0 * Y, LINF, effort="quick")


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (
            lambda logits, y: 1 / 0,
            "the loss fails on logits of shape (12, 4) and 12 labels (ZeroDivisionError",
        ),
        (lambda logits: logits, "(TypeError: "),
        (lambda logits, y: None, "the loss gives None for 12 images, must give one value for each"),
        (lambda logits, y: logits, "the loss gives a tensor of torch.float32 and shape (12, 4)"),
        (nn.functional.cross_entropy, "reduction='none'"),
    ],
)
def test_a_loss_of_the_users_own_that_fails_is_one_line(loss: Callable[..., Any], said: str) -> None:
    refused(lambda: sg.pgd(NET, X, Y, LINF, steps=1, restarts=1, loss=loss), said)


def test_a_source_of_other_classes_is_one_line() -> None:
    source = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, dtype=torch.float32))
    transfer = sg.gradients.Transfer(source)
    refused(
        lambda: sg.pgd(NET, X, Y, LINF, steps=1, restarts=1, gradient=transfer),
        "the loss fails on logits of shape (12, 2)",
    )


def test_an_empty_name_is_not_the_current_folder() -> None:
    refused(lambda: sg.audit(NET, X, Y, LINF, out=""), "audit: out = '' names nothing")
    refused(lambda: sg.train(sg.Recipe(), " "), "train: out = ' ' names nothing")


def test_classes_without_end_are_refused() -> None:
    refused(lambda: sg.build("small", classes=10**12, in_shape=(1, 8, 8)), "at most 100000")
