"""The border to other people's models and data: what every public function that takes a model does first.

``measures`` checks the arguments, takes model, images and labels as they come, and runs the function where
autograd works, whatever is switched off around the call.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import chain
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spikeguard.arguments import bind, own_code, shown
from spikeguard.errors import UserError
from spikeguard.inputs import take_ids, take_images, take_labels
from spikeguard.models import Model, parameter_types
from spikeguard.threat import ROUNDING, Threat

P = ParamSpec("P")
R = TypeVar("R")


class Received(NamedTuple):
    """A model with images ``[N, ...]`` and labels ``[N]`` that fit it."""

    model: Model
    x: Tensor
    y: Tensor


class InPrecision(nn.Module):
    """A model that is handed its images in the type they came in, while attacks compute in float32."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.model = model

    def forward(self, x: Tensor, **options: object) -> object:
        """The model's own answer."""
        return self.model(x.to(self.dtype), **options)

    def __repr__(self) -> str:
        return repr(self.model)


def receive(model: object, x: object, y: object, who: str) -> Received:
    """Model, images and labels as a user hands them in, ready for attacks; UserError in the name of ``who``.

    Images are float32, or float64 where the model computes in float64. A model whose images come in float16
    or bfloat16 gets them so, unless all its parameters are float32.
    """
    callable_ = take_model(model, who)
    images = take_images(x)
    given, kinds = x.dtype if isinstance(x, Tensor) else None, parameter_types(callable_)
    array = isinstance(x, np.ndarray) and images.dtype == torch.float64  # numpy's default, no wish
    if images.dtype == torch.float64 and torch.float64 not in kinds and (kinds or array):
        images = images.float()
    elif images.dtype == torch.float32 and kinds == [torch.float64]:
        images = images.double()
    if given is not None and given.itemsize < 4 and kinds != [torch.float32]:
        callable_ = InPrecision(callable_, given)
    return Received(callable_, images, take_labels(y, images))


def take_model(model: object, who: str) -> Model:
    """A callable that can be a model; UserError for what cannot be one before it is called."""
    if not callable(model):
        raise UserError(
            f"{who}: model = {shown(model)} is not callable; pass a function from images to logits"
        )
    if isinstance(model, type):
        raise UserError(f"{who}: model = {shown(model)} is a class; pass an instance of it")
    if any(model is one for one in vars(builtins).values()):
        raise UserError(f"{who}: model = {shown(model)} is no model; pass a function from images to logits")
    tensors = own_code(f"{who}: the parts of the model cannot be listed", lambda: _tensors(model))
    if any(is_lazy(t) for t in tensors):
        raise UserError(f"{who}: the model has lazy layers without a shape yet: call it once on its images")
    if any(t.is_meta for t in tensors):
        raise UserError(f"{who}: the model lies on the meta device, without values: load its weights")
    if any(t.is_inference() for t in tensors):
        raise UserError(
            f"{who}: the model was made under torch.inference_mode, so that no gradient passes it: build or "
            "load it outside"
        )
    return model


def _tensors(model: object) -> list[Tensor]:
    return list(chain(model.parameters(), model.buffers())) if isinstance(model, nn.Module) else []


@contextmanager
def gradients_allowed() -> Iterator[None]:
    """Autograd works inside, whatever is switched off around the call."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def measures(function: Callable[P, R]) -> Callable[P, R]:
    """A public function of a model, images ``x``, labels ``y``, perhaps ``first`` and ``index``.

    Its arguments are checked against their hints; model and data are received as above.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        who = function.__name__
        given = bind(function, args, kwargs, "model", "x", "y", "first", "index")
        with gradients_allowed():
            received = receive(given["model"], given["x"], given["y"], who)
            given |= received._asdict()
            if given.get("index") is not None:
                given["index"] = take_ids(given["index"], received.x)
            if given.get("first") is not None:
                given["first"] = take_first(given["first"], received.x, given["threat"], who)
            return function(**given)  # type: ignore[call-arg, arg-type]

    return call


def take_first(first: object, x: Tensor, threat: object, who: str) -> Tensor:
    """Points to start at, like the images ``x`` and inside the budget around them."""
    held = take_images(first)
    if held.shape != x.shape:
        raise UserError(f"{who}: first has shape {tuple(held.shape)}, must have that of x, {tuple(x.shape)}")
    held = held.to(x)
    if isinstance(threat, Threat) and (over := threat.excess(held, x)) > ROUNDING:
        raise UserError(f"{who}: first lies {over:.2g} outside of the budget around x, must lie inside")
    return held
