"""How to put back one thing, to the bit: a tensor, an array, a container, attributes, a generator."""

from __future__ import annotations

import functools
import random
import types
from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

Undo = Callable[[], None]
Container = list[object] | dict[object, object] | deque[object]
HOOKS = [name for name in vars(nn.Module()) if "hooks" in name and not name.endswith("set")]
MODULE_STATE = {"training", "_parameters", "_buffers", "_modules", *HOOKS}
DEEP = 4
"""Containers in containers are searched for tensors this deep."""
EMPTY = object()


def content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return EMPTY


def cell(cell: types.CellType, held: object) -> Undo:
    def back() -> None:
        now = content(cell)
        if now is not held and (holds_tensors(held) or holds_tensors(now)):
            cell.cell_contents = held

    return back


def entry(table: dict[str, object], name: str) -> Undo:
    held = table[name]

    def back() -> None:
        if table.get(name) is not held:
            table[name] = held

    return back


def _torch_generator(value: torch.Generator) -> Undo:
    state = value.get_state()

    def back() -> None:
        value.set_state(state)

    return back


def generator(value: object) -> Undo | None:
    """How to put back the state of a random generator."""
    if isinstance(value, torch.Generator):
        return _torch_generator(value)
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if isinstance(value, np.random.RandomState):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return functools.partial(setattr, bits, "state", bits.state)
    return None


def array(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Undo:
    kept = array.copy()

    def back() -> None:
        if array.flags.writeable:
            array[...] = kept

    return back


def tensor(tensor: Tensor) -> Undo:
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
        elif not _equal(tensor.detach(), kept):
            tensor.detach().copy_(kept)
        if leaf and tensor.grad is not gradient:
            tensor.grad = gradient
        if gradient is not None and before is not None and not _equal(gradient, before):
            gradient.detach().copy_(before)

    return back


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.layout != torch.strided or a.is_quantized:
        return torch.equal(*((t.dequantize() if t.is_quantized else t.to_dense()) for t in (a, b)))
    return torch.equal(a, b)


def table(table: dict[str, object]) -> Undo:
    """Entries of a module's own table: which hooks, parameters and parts it has, in their order."""
    kept = list(table.items())

    def back() -> None:
        if [(k, id(v)) for k, v in table.items()] != [(k, id(v)) for k, v in kept]:
            table.clear()
            table.update(kept)

    return back


def holds_tensors(value: object, depth: int = DEEP) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return True
    parts = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, (list, tuple, set, deque))
        else ()
    )
    return depth > 0 and any(holds_tensors(v, depth - 1) for v in parts)


def container(held: Container) -> Undo:
    """A list or dictionary is put back if it holds tensors, before or after."""
    kept, relevant = held.copy(), holds_tensors(held)

    def back() -> None:
        if not (relevant or holds_tensors(held)):
            return
        if isinstance(held, dict) and isinstance(kept, dict):
            held.clear()
            held.update(kept)
        elif isinstance(held, list) and isinstance(kept, list):
            held[:] = kept
        elif isinstance(held, deque):
            held.clear()
            held.extend(kept)

    return back


def attributes(attributes: dict[str, object]) -> Undo:
    """Attributes that hold tensors, before or after; counters and the like go on."""
    kept = dict(attributes)

    def back() -> None:
        for name in {*kept, *attributes} - MODULE_STATE:
            before, after = kept.get(name), attributes.get(name)
            if before is after or not (holds_tensors(before) or holds_tensors(after)):
                continue
            if name in kept:
                attributes[name] = before
            else:
                del attributes[name]

    return back
