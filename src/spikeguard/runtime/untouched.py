"""Everything that a model holds is put back after a measurement, to the bit, whatever its code does.

Tensors (parameters, buffers, attributes, also in lists and dictionaries), modes, hooks, ``requires_grad``,
gradients; and of the process the states of random generators and the default type.
"""

from __future__ import annotations

import functools
import inspect
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")
Undo = Callable[[], None]
DEPTH = 4
"""Containers and objects of a module's attributes are followed this deep."""
HOOKS = [name for name in vars(nn.Module()) if "hooks" in name and not name.endswith("set")]
MODULE_STATE = {"training", "_parameters", "_buffers", "_modules", *HOOKS}
_guarded = threading.local()


@contextmanager
def untouched(model: object) -> Iterator[None]:
    """What ``model`` holds is the same to the bit afterwards; inside another guard of it nothing is done."""
    active: set[int] = vars(_guarded).setdefault("models", set())
    if id(model) in active:
        yield
        return
    undo, seen = list[Undo](), set[int]()
    for root in _roots(model):
        _keep(root, undo, seen, DEPTH)
    process = None if active else _process()
    active.add(id(model))
    try:
        yield
    finally:
        active.discard(id(model))
        with torch.no_grad(), torch.inference_mode(False):
            for one in reversed(undo):
                one()
        if process is not None:
            process()


def leaves_untouched(verb: Callable[P, R]) -> Callable[P, R]:
    """A function whose first argument is a model, which it leaves ``untouched``."""

    first = next(iter(inspect.signature(verb).parameters))

    @functools.wraps(verb)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        with untouched(args[0] if args else kwargs.get(first)):
            return verb(*args, **kwargs)

    return guarded


def _roots(model: object) -> Iterable[object]:
    """The model; for a function what it refers to."""
    if isinstance(model, functools.partial):
        return [r for part in (model.func, *model.args, *model.keywords.values()) for r in _roots(part)]
    if inspect.ismethod(model):
        return [model.__self__]
    if inspect.isfunction(model):
        held = [c.cell_contents for c in model.__closure__ or () if not _is_empty(c)]
        held += [model.__globals__.get(name) for name in model.__code__.co_names]
        modules = [h for h in held if isinstance(h, (nn.Module, Tensor))]
        return [*modules, *(r for h in held if inspect.isfunction(h) and h is not model for r in _cells(h))]
    return [model]


def _cells(function: Callable[..., object]) -> Iterable[object]:
    """Modules and tensors that a function inside a function refers to."""
    cells = [c.cell_contents for c in getattr(function, "__closure__", None) or () if not _is_empty(c)]
    return [c for c in cells if isinstance(c, (nn.Module, Tensor))]


def _is_empty(cell: object) -> bool:
    try:
        cell.cell_contents  # type: ignore[attr-defined]  # noqa: B018
    except ValueError:
        return True
    return False


def _keep(value: object, undo: list[Undo], seen: set[int], depth: int) -> None:
    """Note how to put back what ``value`` holds."""
    if id(value) in seen or depth < 0:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        undo.append(_tensor(value))
    elif isinstance(value, nn.Module):
        _keep_module(value, undo, seen)
    elif isinstance(value, (list, dict)):
        undo.append(_container(value))
        for part in list(value.values() if isinstance(value, dict) else value):
            _keep(part, undo, seen, depth - 1)
    elif isinstance(value, (tuple, set)):
        for part in value:
            _keep(part, undo, seen, depth - 1)
    elif _is_plain_object(value):
        undo.append(_attributes(vars(value)))
        for part in list(vars(value).values()):
            _keep(part, undo, seen, depth - 1)


def _is_plain_object(value: object) -> bool:
    return hasattr(value, "__dict__") and not (
        isinstance(value, type) or callable(value) or inspect.ismodule(value)
    )


def _keep_module(module: nn.Module, undo: list[Undo], seen: set[int]) -> None:
    training = module.training

    def mode() -> None:
        if module.training != training:
            module.training = training

    undo.append(mode)
    for held in (module.parameters(recurse=False), module.buffers(recurse=False), module.children()):
        for part in held:
            _keep(part, undo, seen, DEPTH)
    attributes = vars(module)
    for name in MODULE_STATE - {"training"}:
        if isinstance(table := attributes.get(name), dict):  # a scripted module has tables of its own
            undo.append(_table(table))
    undo.append(_attributes(attributes))
    for name, value in list(attributes.items()):
        if name not in MODULE_STATE:
            _keep(value, undo, seen, DEPTH - 1)


def _tensor(tensor: Tensor) -> Undo:
    if tensor.is_meta or isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        return lambda: None
    kept, wanted, gradient = (
        tensor.detach().clone(),
        tensor.requires_grad,
        tensor.grad if tensor.is_leaf else None,
    )
    leaf, before = tensor.is_leaf, None if gradient is None else gradient.detach().clone()

    def back() -> None:
        if leaf and not tensor.is_leaf:
            tensor.detach_()
        # a tensor that was cut from its graph meanwhile stays so: it must not become a leaf with a gradient
        if tensor.is_leaf and tensor.requires_grad != (wanted and leaf):
            tensor.requires_grad_(wanted and leaf)
        if tensor.shape != kept.shape or tensor.dtype != kept.dtype or tensor.device != kept.device:
            tensor.data = kept
        elif not torch.equal(tensor.detach(), kept):
            tensor.detach().copy_(kept)
        if leaf and tensor.grad is not gradient:
            tensor.grad = gradient
        if gradient is not None and before is not None and not torch.equal(gradient, before):
            gradient.detach().copy_(before)

    return back


def _table(table: dict[str, object]) -> Undo:
    """Entries of a module's own table: which hooks, parameters and parts it has, in their order."""
    kept = list(table.items())

    def back() -> None:
        if [(k, id(v)) for k, v in table.items()] != [(k, id(v)) for k, v in kept]:
            table.clear()
            table.update(kept)

    return back


def _holds_tensors(value: object, depth: int = DEPTH) -> bool:
    if isinstance(value, Tensor):
        return True
    parts = (
        value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
    )
    return depth > 0 and any(_holds_tensors(v, depth - 1) for v in parts)


def _container(held: list[object] | dict[object, object]) -> Undo:
    """A list or dictionary is put back if it holds tensors, before or after."""
    kept, relevant = held.copy(), _holds_tensors(held)

    def back() -> None:
        if not (relevant or _holds_tensors(held)):
            return
        if isinstance(held, dict) and isinstance(kept, dict):
            held.clear()
            held.update(kept)
        elif isinstance(held, list) and isinstance(kept, list):
            held[:] = kept

    return back


def _attributes(attributes: dict[str, object]) -> Undo:
    """Attributes that hold tensors, before or after; counters and the like go on."""
    kept = dict(attributes)

    def back() -> None:
        for name in {*kept, *attributes} - MODULE_STATE:
            before, after = kept.get(name), attributes.get(name)
            if before is after or not (_holds_tensors(before) or _holds_tensors(after)):
                continue
            if name in kept:
                attributes[name] = before
            else:
                del attributes[name]

    return back


def _process() -> Undo:
    """States of random generators, and the default type."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    cpu, own, kind = torch.get_rng_state(), random.getstate(), torch.get_default_dtype()
    numpy = sys.modules.get("numpy")
    arrays = None if numpy is None else numpy.random.get_state()

    def back() -> None:
        torch.set_rng_state(cpu)
        random.setstate(own)
        torch.set_default_dtype(kind)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if numpy is not None:
            numpy.random.set_state(arrays)

    return back
