"""Sums that are spikes: straight-through expressions, and spikes plus or minus a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from spikeguard.gradients.readings import Readings
from spikeguard.gradients.spike import Raw, Reading

Function = Callable[..., Raw]
Args = tuple[Raw, ...]
Kwargs = Mapping[str, Raw]

SUMS = {"add", "sub", "subtract", "rsub", "__add__", "__radd__", "__sub__", "__rsub__"}
CLOSE = 1e-5


def attached(reader: Readings, values: Args) -> list[Raw]:
    """Tensors before they were detached."""
    return [reader.origins.get(v, v) if isinstance(v, Tensor) else v for v in values]


def _sum(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """A term of a straight-through expression; the one that cancels the others makes the sum spikes."""
    out, pair = func(*args, **kwargs), args[:2]
    if not isinstance(out, Tensor) or not out.is_floating_point():
        return out
    with torch._C.DisableTorchFunction():
        if any(isinstance(t, Tensor) and t in reader.origins for t in pair) and not out.requires_grad:
            with torch.enable_grad():
                reader.origins[out] = func(*attached(reader, pair), **kwargs)
        shifted = _shifted(reader, func, pair, out, kwargs)
        if shifted is not None:
            return shifted
        found = [r for r in map(reader.reading, pair) if r is not None]
        if not found and _same_memory(*pair):
            reader.zeros[out] = pair[0] if pair[0].requires_grad else pair[1]
        if len(found) != 1 or out.shape != found[0].mask.shape:
            return out
        return _added(reader, out, found[0], pair[0] if reader.reading(pair[1]) else pair[1])


def _shifted(reader: Readings, func: Function, pair: Args, out: Tensor, kwargs: Kwargs) -> Tensor | None:
    """Spikes plus or minus a number, or a number minus spikes: spikes between two other values."""
    first = reader.reading(pair[0])
    found, number = (first, pair[1]) if first is not None else (reader.reading(pair[1]), pair[0])
    if found is None or not found.complete or kwargs or not isinstance(number, (int, float)):
        return None
    name = func.__name__
    reverse = first is None if name in ("sub", "subtract", "__sub__") else name in ("rsub", "__rsub__")
    minus = reverse or (name in ("sub", "subtract", "__sub__") and first is not None)
    height = -found.height if reverse else found.height
    low = number - found.low if reverse else found.low - number if minus else found.low + number
    moved = replace(found, low=low, height=height)
    spikes = pair[0] if first is not None else pair[1]
    if spikes.is_floating_point():
        reader.note(out, moved)
        return out
    return reader.fire(moved, out)


def _added(reader: Readings, out: Tensor, found: Reading, term: object) -> object:
    """A sum of what was read and another term. Terms that are 0 by chance do not make a sum spikes."""
    if not isinstance(term, Tensor):
        return out
    zero = reader.zeros.get(term)
    value = found.value.to(out.dtype)
    close = max(CLOSE, 8 * torch.finfo(out.dtype).eps)
    equal = torch.allclose(out.detach(), value, 0.0, close)
    soft = zero if zero is not None else found.soft if found.soft is not None else term
    cancels = zero is not None or (not found.complete and (found.moved or _same_memory(found.soft, term)))
    if not (equal and cancels):
        return reader.note(out, replace(found, complete=False, soft=soft, moved=not equal))
    whole = replace(found, complete=True, soft=None, moved=False)
    if not reader.keep_own:
        return reader.fire(whole, out, own=soft.requires_grad)
    if not soft.requires_grad:
        soft = term
    soft = reader.soft.get(soft, soft)
    return reader.note(out.detach() + soft - soft.detach() if soft.requires_grad else out, whole)


def _same_memory(a: object, b: object) -> bool:
    """Is one of two tensors the other, or its detached view?"""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape:
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(a):
        return a is b
    return a.data_ptr() == b.data_ptr()


RULES = dict.fromkeys(SUMS, _sum)
