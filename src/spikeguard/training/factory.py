"""Networks of the user's own on disk: their weights, and the function that builds them.

A file of weights names its factory and the arguments, as JSON in its metadata. Loading it runs that function:
it has to be a class of networks, or to say in its signature that it returns one, so that no file can have
anything else called.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

from torch import Tensor, nn

from spikeguard.arguments import checked, own_code
from spikeguard.errors import UserError, nearest
from spikeguard.records.build import build, table
from spikeguard.records.plain import Json, plain
from spikeguard.training.checkpoint import put_weights, save_tensors

FACTORY = "factory"
FORM = "package.module:function"


@dataclass(frozen=True)
class Factory:
    """A function that builds a network, as ``package.module:function``, and its keyword arguments."""

    function: str
    arguments: dict[str, object] = field(default_factory=dict)

    @staticmethod
    def of(values: Json, where: str) -> Factory:
        """From the metadata of a file; UserError if they are damaged."""
        return build(Factory, table(values, where), where)

    def network(self, here: bool = False) -> nn.Module:
        """The network, untrained; ``here``: the current folder is searched first.

        UserError if the function is missing, returns none, or fails.
        """
        function = import_factory(self.function, here)
        if not _returns_network(function):
            raise UserError(
                f"{self.function} must be a class of networks or a function whose signature says that it "
                "returns one, such as `def build(width: int) -> nn.Module`"
            )
        shown = ", ".join(f"{k}={v!r}" for k, v in self.arguments.items())
        network = own_code(f"{self.function}({shown}) fails", lambda: function(**self.arguments))
        if not isinstance(network, nn.Module):
            raise UserError(f"{self.function} returned a {type(network).__name__}, must return a network")
        return network


def import_factory(name: str, here: bool = False) -> Callable[..., object]:
    """The function ``package.module:function``; ``here``: the current folder is searched first."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise UserError(f"{name!r} must be {FORM}")
    seen = ", seen from this folder" if here else ""
    with _current_folder_first() if here else nullcontext():
        found: ModuleType = own_code(
            f"cannot import {module!r}",
            lambda: importlib.import_module(module),
            f"; {name} must be {FORM}{seen}",
        )
        factory: object = getattr(found, attribute, None)
    if not callable(factory):
        if hasattr(found, attribute):
            raise UserError(
                f"{name} is a {type(factory).__name__}; it must be a function that returns the network"
            )
        near = nearest(attribute, [n for n in vars(found) if not n.startswith("_")])
        hint = f"; did you mean {near!r}?" if near else ""
        raise UserError(f"{module} has no function {attribute!r}{hint}")
    return factory


@contextmanager
def _current_folder_first() -> Iterator[None]:
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.pop(0)


def _returns_network(function: Callable[..., object]) -> bool:
    """Is it a class of networks, or a function that is annotated to return one?"""
    if inspect.isclass(function):
        return issubclass(function, nn.Module)
    try:
        returned = get_type_hints(function).get("return")
    except Exception:  # annotations are code of the user's, too
        return False
    return inspect.isclass(returned) and issubclass(returned, nn.Module)


@checked
def save(model: nn.Module, path: str | Path, *, factory: str, **arguments: object) -> None:
    """Save a network of your own: its weights, and the function that builds it, for ``sg.load``.

    ``factory``: ``package.module:function``, a class of networks or a function annotated to return one;
    ``arguments``: its keyword arguments, plain values. UserError if it cannot be imported, fails, or builds
    a network that these weights do not fit; if the arguments are no plain values; or if the file cannot be
    written.

    >>> model = torch.nn.Linear(4, 2)
    >>> sg.save(model, "own.safetensors", factory="torch.nn:Linear", in_features=4, out_features=2)
    >>> torch.equal(sg.load("own.safetensors").weight, model.weight)
    True
    """
    try:
        values = plain(arguments)
    except TypeError as error:
        raise UserError(f"save: {error}: pass numbers, text, lists and tables") from error
    made = Factory(factory, dict(values))
    weights = weights_of(model)
    put_weights(made.network(), weights, Path(path))
    save_tensors(Path(path), weights, {FACTORY: {"function": factory, "arguments": values}})


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what the state of a network holds; UserError if that is not tensors only."""
    state: Mapping[str, object] = model.state_dict()
    if odd := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{type(model).__name__} has {odd[0]} in its state, which is no tensor")
    return {name: value.detach().clone() for name, value in state.items() if isinstance(value, Tensor)}
