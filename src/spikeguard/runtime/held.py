"""What a model holds, and how to put it back to the bit.

Tensors (parameters, buffers, attributes, in containers of any kind), arrays, generators, modes, hooks,
``requires_grad``, gradients; in modules and other objects, their classes, and the functions that they use.
Numbers and texts go on: a counter of calls counts. So does a list outside of modules and classes that held
no tensor: it is a log, such as one that a hook of the user's fills.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor, nn

from spikeguard.runtime import put_back
from spikeguard.runtime.put_back import EMPTY, HOOKS, MODULE_STATE, Undo, holds_tensors

DEPTH = 10
"""Containers and objects of a module's attributes are followed this deep."""
CONTAINERS = (list, dict, deque)
LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy", "spikeguard"} - {"__main__"}
"""Packages whose classes, functions and callable objects are not followed."""


class Held:
    """What an object holds now."""

    def __init__(self, model: object) -> None:
        self.undo, self.seen = list[Undo](), set[int]()
        self._keep(model, DEPTH)

    def restore(self) -> None:
        """Make everything the same again, the latest first."""
        for one in reversed(self.undo):
            one()

    def _keep(self, value: object, depth: int) -> None:
        """Note how to put back what ``value`` holds."""
        if value is None or isinstance(value, (int, float, str, type, types.ModuleType)):
            return
        if id(value) in self.seen or depth < 0:
            return
        self.seen.add(id(value))
        if isinstance(value, Tensor):
            self.undo.append(put_back.tensor(value))
            self._keep_attributes(getattr(value, "__dict__", {}), depth)
        elif isinstance(value, nn.Module):
            self._keep_module(value)
        elif isinstance(value, np.ndarray):
            self.undo.append(put_back.array(value))
        elif isinstance(value, CONTAINERS):
            self.undo.append(put_back.container(value))
            self._keep_parts(value.values() if isinstance(value, dict) else value, depth)
        elif isinstance(value, (tuple, set)):
            self._keep_parts(value, depth)
        elif (state := put_back.generator(value)) is not None:
            self.undo.append(state)
        else:
            self._keep_callable(value, depth)

    def _keep_parts(self, parts: Iterable[object], depth: int) -> None:
        for part in list(parts):
            self._keep(part, depth - 1)

    def _keep_callable(self, value: object, depth: int) -> None:
        """Functions, methods and other objects."""
        if isinstance(value, functools.partial):
            self._keep_parts((value.func, *value.args, *value.keywords.values()), depth)
        elif inspect.ismethod(value):
            self._keep_parts((value.__self__, value.__func__), depth)
        elif inspect.isfunction(value):
            self._keep_function(value, depth)
        elif not callable(value) or _root(type(value)) not in LIBRARIES:
            self._keep_attributes(getattr(value, "__dict__", {}), depth)
            self._keep_slots(value, depth)
            self._keep_class(type(value))

    def _keep_function(self, function: types.FunctionType, depth: int) -> None:
        """What a function of the user refers to: its cells, and globals by their names."""
        if _root(function) in LIBRARIES:
            return
        for cell in function.__closure__ or ():
            if (held := put_back.content(cell)) is not EMPTY:
                self.undo.append(put_back.cell(cell, held))
                if holds_tensors(held) or not isinstance(held, CONTAINERS):
                    self._keep(held, depth - 1)
        for name in _names(function.__code__):
            held = function.__globals__.get(name)
            if isinstance(held, nn.Module) or inspect.isfunction(held):
                self._keep(held, depth - 1)
            elif holds_tensors(held):
                self.undo.append(put_back.entry(function.__globals__, name))
                self._keep(held, depth - 1)

    def _keep_module(self, module: nn.Module) -> None:
        training = getattr(module, "training", None)  # what torch.jit.freeze made has none

        def mode() -> None:
            if training is not None and module.training != training:
                module.training = training

        self.undo.append(mode)
        for held in (module.parameters(recurse=False), module.buffers(recurse=False), module.children()):
            for part in held:
                self._keep(part, DEPTH)
        attributes = vars(module)
        for name in MODULE_STATE - {"training"}:
            if isinstance(table := attributes.get(name), dict):  # a scripted module has tables of its own
                self.undo.append(put_back.table(table))
                if name in HOOKS:
                    self._keep_parts(table.values(), DEPTH)
        self._keep_attributes(attributes, DEPTH)
        self._keep_class(type(module))

    def _keep_attributes(self, attributes: dict[str, object], depth: int) -> None:
        if not attributes:
            return
        self.undo.append(put_back.attributes(attributes))
        for name, value in list(attributes.items()):
            if name not in MODULE_STATE:
                self._keep(value, depth - 1)

    def _keep_slots(self, value: object, depth: int) -> None:
        names = [n for c in type(value).__mro__ for n in _slots(c) if hasattr(value, n)]
        for name in names:
            held = getattr(value, name)
            if holds_tensors(held):
                self.undo.append(functools.partial(setattr, value, name, held))
            self._keep(held, depth - 1)

    def _keep_class(self, kind: type) -> None:
        """Tensors that a class of the user holds, and what its methods refer to."""
        for one in kind.__mro__:
            if id(one) in self.seen or _root(one) in LIBRARIES:
                continue
            self.seen.add(id(one))
            for name, value in list(vars(one).items()):
                if inspect.isfunction(value):
                    self._keep_function(value, DEPTH)
                elif holds_tensors(value) or isinstance(value, CONTAINERS):
                    self.undo.append(functools.partial(setattr, one, name, value))
                    self._keep(value, DEPTH)


def _root(value: object) -> str:
    return str(getattr(value, "__module__", None) or "").split(".")[0]


def _slots(kind: type) -> Iterator[str]:
    slots = vars(kind).get("__slots__", ())
    for name in (slots,) if isinstance(slots, str) else slots:
        if name not in ("__dict__", "__weakref__"):
            yield name


def _names(code: types.CodeType) -> set[str]:
    """Names that a function's code, or a function inside it, refers to."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return {*code.co_names, *(name for c in inner for name in _names(c))}
