"""Spikes put together from masks: stacked, written step by step into a tensor, or by their indices.

And, where the gradient passes what is detached, what a mask selects: ``v.masked_fill(spikes > 0, 0)`` resets
a membrane as ``v * (1 - spikes)`` does.
"""

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
OUT_OF_REACH = 1e4
"""Distance to the threshold of elements that hold no spikes."""


def joined(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """``stack`` and ``cat`` of masks or spikes that were read."""
    out = func(*args, **kwargs)
    parts = args[0] if args and isinstance(args[0], (list, tuple)) else kwargs.get("tensors", ())
    found = [reader.reading(p) for p in parts]
    read = [r for r in found if r is not None and r.complete]
    if not read or len(read) < len(parts) or len({(r.low, r.height) for r in read}) > 1:
        return out
    if not isinstance(out, Tensor) or out.is_floating_point():
        return out
    rest = {k: v for k, v in kwargs.items() if k != "tensors"}
    with torch._C.DisableTorchFunction(), torch.enable_grad():
        u, mask = (func([getattr(r, n) for r in read], *args[1:], **rest) for n in ("u", "mask"))
        return reader.note(out, replace(read[0], u=u, mask=mask))


def written(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """``target[index] = value``: a mask that was read is written, or a constant where it holds."""
    target, index, value = args
    by_mask = _mask_of(reader, index, target)
    if by_mask is not None:
        return _constant_written(reader, func, args, by_mask)
    found = reader.reading(value)
    if found is None or not found.complete or not isinstance(target, Tensor) or value.is_floating_point():
        reader.readings.pop(target, None)
        return func(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        if target.is_floating_point():
            spikes = reader.fire(found, value.to(target.dtype))
            return func(target, index, spikes)
        before = reader.reading(target)
        with torch.enable_grad():
            u = torch.full_like(target, -OUT_OF_REACH, dtype=found.u.dtype) if before is None else before.u
            u = u.clone()
            u[index] = found.u
        out = func(*args, **kwargs)
        reader.readings.pop(target, None)
        reader.note(target, replace(found, u=u, mask=target.bool()))
        return out


def copied(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """``target.copy_(mask)``: a mask becomes numbers."""
    found = reader.reading(args[1]) if len(args) > 1 else None
    if found is None or not args[0].is_floating_point() or args[1].is_floating_point():
        return func(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        return func(args[0], reader.fire(found, args[1].to(args[0].dtype)), *args[2:], **kwargs)


def _mask_of(reader: Readings, index: Raw, target: Raw) -> Reading | None:
    """The comparison that an index is, or is made of."""
    if isinstance(index, Tensor):
        return reader.reading(index) if index.dtype == torch.bool else None
    if isinstance(index, (tuple, list)) and index:
        if len(index) == 1 and isinstance(index[0], Tensor) and index[0].dtype == torch.bool:
            return reader.reading(index[0])
        found = reader.indices.get(index[0]) if isinstance(index[0], Tensor) else None
        return found if isinstance(found, Reading) else None
    return None


def filled(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """A constant written where the comparison holds: spikes, if all else is constant as well."""
    found = _mask_of(reader, args[1], args[0]) if len(args) > 2 else None
    if found is None:
        return func(*args, **kwargs)
    return _constant_written(reader, func, args, found)


def _constant_written(reader: Readings, func: Function, args: Args, found: Reading) -> object:
    before = args[0].clone() if reader.opens and args[0].is_floating_point() else None
    out, value = func(*args), args[2]
    target = args[0] if out is None else out
    with torch._C.DisableTorchFunction():
        if target.shape != found.mask.shape:
            return out
        fixed = target.requires_grad and not (target._is_view() or reader.reading(target) is not None)
        if fixed or bool(found.mask.all()):
            chosen = constant(torch.as_tensor(value)) if before is not None else None
            if before is None or chosen is None:
                return out
            slope = mask_slope(reader, found, chosen, before)
            if slope is None:
                return out
            return target + slope if target is not args[0] else target.add_(slope)
        low, high = constant(target[~found.mask]), constant(target[found.mask])
        if low is None or (high is None and bool(found.mask.any())):
            return out
        if high is None:
            high = float(value) if isinstance(value, (int, float)) or value.numel() == 1 else low + 1.0
        spikes = replace(found, low=low, height=high - low)
        fired = reader.fire(spikes, target)
        if target is not args[0]:
            return fired
        if fired is not target:
            target.copy_(fired)
        reader.note(target, spikes)
        return out


def mask_slope(reader: Readings, found: Reading, chosen: Raw, other: Raw) -> Tensor | None:
    """Zeros whose gradient is that of the mask where it selects ``chosen`` rather than ``other``."""
    if not found.complete or not found.u.requires_grad or not torch.is_grad_enabled():
        return None
    hard = reader.fire(replace(found, low=0.0, height=1.0), found.mask.to(found.u.dtype))
    apart = torch.as_tensor(chosen).detach() - torch.as_tensor(other).detach()
    return (hard - hard.detach()) * apart.nan_to_num(0.0, 0.0, 0.0)


def put(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """``zeros.index_put((mask,), ones)`` and ``zeros.masked_scatter(mask, ones)``."""
    return filled(reader, func, args, kwargs) if not kwargs else func(*args, **kwargs)


def indices(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """Where a mask holds, as indices."""
    out, found = func(*args, **kwargs), reader.reading(args[0])
    if found is not None and isinstance(out, tuple):
        for one in out:
            reader.indices[one] = found
    return out


def constant(values: Tensor) -> float | None:
    """The one value of a tensor, if it has only one."""
    if not values.numel():
        return None
    first = values.flatten()[0]
    return float(first) if bool((values == first).all()) else None


RULES = {
    **dict.fromkeys(("stack", "cat", "concat", "concatenate"), joined),
    "__setitem__": written,
    **dict.fromkeys(("masked_fill", "masked_fill_"), filled),
    **dict.fromkeys(("index_put", "index_put_", "masked_scatter", "masked_scatter_"), put),
    "nonzero": indices,
    "copy_": copied,
}
