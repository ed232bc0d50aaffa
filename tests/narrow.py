"""What a test knows about a value and a type checker does not: asserted once, in words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from spikeguard.networks.classifier import Classifier
from spikeguard.networks.small import Stage, Stages

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
D = TypeVar("D", bound="DataclassInstance")


def as_a(kind: type[T], value: object) -> T:
    """The value, which is of that class."""
    assert isinstance(value, kind), f"{value!r} is no {kind.__name__}"
    return value


def present(value: T | None) -> T:
    """The value, which is there."""
    assert value is not None
    return value


def changed(record: D, **changes: object) -> D:
    """The record with these fields, whose names and values a table of cases holds."""
    return replace(record, **changes)


def wrong(value: object) -> Any:
    """The value where its type is not allowed: what is handed in on purpose."""
    return value


def applied(function: type[torch.autograd.Function], *inputs: Tensor | float) -> Tensor:
    """The output of an autograd function that gives one tensor."""
    return as_a(Tensor, function.apply(*inputs))


def kept(owner: object, name: str) -> Tensor:
    """A tensor that an object of a private class keeps."""
    return as_a(Tensor, getattr(owner, name))


def conv_of(stage: Stage) -> nn.Conv2d:
    """The convolution of a stage."""
    return as_a(nn.Conv2d, stage.conv[0])


def stages_of(net: nn.Module) -> list[Stage]:
    """The stages of a network "small"."""
    return [as_a(Stage, stage) for stage in as_a(Stages, as_a(Classifier, net).body).stages]
