"""Spikes recognized by the values that an operation gives, whatever the operation is.

A tensor of the graph that takes two values, computed from others that take many: a straight-through
expression, if a comparison gave these values a moment ago. And a function without a gradient that gives few
values of many: its jumps are searched for. What remains is named, and not passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from spikeguard.gradients.jumps import SAMPLE, few_values, find_jumps
from spikeguard.gradients.readings import Compared, Readings
from spikeguard.gradients.spike import Raw, Reading

COMBINES = {"add", "sub", "subtract", "rsub", "__add__", "__radd__", "__sub__", "__rsub__", "sum"}
COMBINES |= {"add_", "sub_", "__iadd__", "__isub__", "mul", "multiply", "__mul__", "__rmul__", "lerp"}
COMBINES |= {"div", "divide", "true_divide", "__truediv__", "__rtruediv__", "addcmul", "addcdiv", "lerp_"}
ARITHMETIC = {n for n in COMBINES if not n.endswith("_") or n.startswith("__")} - {"__iadd__", "__isub__"}
"""What gives a new tensor from others, element by element."""
SATURATES = {"clamp", "clip", "hardtanh", "sigmoid", "tanh", "where", "minimum", "maximum"}
SATURATES |= {"masked_fill"}
"""Functions whose results may take two values because they saturate, as of a well trained network."""
COMBINES |= {"copysign"} | SATURATES
KNOWN = {"detach", "requires_grad_", "clone", "contiguous", "data", "bernoulli"}
"""Functions whose results without a gradient are no spikes, or are spikes at random."""
MAKES = ("empty", "zeros", "ones", "full", "rand", "new_", "__get")
"""How the names of functions begin that take a tensor for its shape, or a part of it."""
NEAR = 1e-4


def recognized(
    reader: Readings, func: Raw, args: tuple[Raw, ...], kwargs: Mapping[str, Raw], out: Raw
) -> Raw:
    """``out``, as spikes if its values are those of spikes."""
    name = getattr(func, "__name__", "")
    if (
        not isinstance(out, Tensor)
        or out.dim() < 2
        or reader.observed is not None
        or reader.fired is not None
    ):
        return out
    if not torch.is_grad_enabled() or reader.reading(out) is not None:
        return out
    with torch._C.DisableTorchFunction():
        if out.requires_grad and not _without_derivative(out):
            return _combined(reader, name, args, out) if name in COMBINES else out
        if name in KNOWN or name.startswith(MAKES) or "out" in kwargs:
            return out
        _name_lost(reader, name, args, out)
        return _stepped(reader, func, args, kwargs, out)


def _combined(reader: Readings, name: str, args: tuple[Raw, ...], out: Tensor) -> Tensor:
    """A straight-through expression's last operation."""
    if not _two_values(out) or not any(_many_values(a) and not _two_values(a) for a in _tensors(args)):
        return out
    fired = made_spikes(reader, out, name)
    return put_in_place(out, fired) if name.endswith("_") or name.startswith("__i") else fired


def made_spikes(reader: Readings, out: Tensor, name: str) -> Tensor:
    """``out``, which ``name`` gave two values, as spikes of the comparison that gave them before."""
    if not reader.wanted(out) or not _two_values(out):
        return out
    values = out.detach()
    found = next((c for c in reversed(reader.recent) if _gives(c, values)), None)
    if found is None:
        if name not in SATURATES:
            reader.unread.add(name.strip("_"))
        return out
    if isinstance(found, Compared):
        return reader.fire_levels(found.u, out, torch.as_tensor(found.height), own=True)
    reading = _scaled(found, values)
    if reader.keep_own:
        reader.note(out, reading)
        return out
    return reader.fire(reading, out, own=True)


def _without_derivative(out: Tensor) -> bool:
    """Did an operator give it for which nobody wrote a derivative?"""
    return out.grad_fn is not None and "NotImplemented" in out.grad_fn.name()


def put_in_place(out: Tensor, fired: Tensor) -> Tensor:
    """The same tensor, with the graph of another one."""
    if fired is out or out._is_view():
        return fired
    out.detach_()
    out.copy_(fired)
    return out


def _scaled(found: Reading, values: Tensor) -> Reading:
    """The reading with the values that the expression gave."""
    low, high = (float(v) for v in values.aminmax())
    mask = values > (low + high) / 2
    turned = found if torch.equal(mask, found.mask) else found.turned()
    return Reading(turned.u, turned.mask, low, high - low)


def _gives(compared: Reading | Compared, values: Tensor) -> bool:
    """Does a comparison give these values, or two others at the same places?"""
    if compared.u.shape != values.shape:
        return False
    if isinstance(compared, Compared):
        return torch.allclose(compared.value.to(values), values, 0.0, NEAR)
    low, high = values.aminmax()
    mask = values > (low + high) / 2
    return torch.equal(mask, compared.mask) or torch.equal(mask, ~compared.mask)


def _stepped(
    reader: Readings, func: Raw, args: tuple[Raw, ...], kwargs: Mapping[str, Raw], out: Tensor
) -> Tensor:
    """The result of a function without a gradient, whose jumps are those of spikes."""
    at = next((k for k, a in enumerate(args) if reader.wanted(a) and a.shape == out.shape), None)
    if at is None or out.dtype == torch.bool or not _many_values(args[at]):
        return out
    values = out.detach().to(args[at].dtype)
    if not few_values(values) or len(values.unique()) < 2:
        return out

    def evaluate(given: Tensor) -> Tensor:
        with torch.no_grad():
            answer = func(*(given if k == at else a for k, a in enumerate(args)), **kwargs)
            return answer.to(given.dtype) if isinstance(answer, Tensor) else answer

    jumps = find_jumps(evaluate, args[at].detach(), values)
    if jumps is None:
        reader.unread.add(getattr(func, "__name__", "function"))
        return out
    with torch.enable_grad():
        u, height = jumps.nearest(args[at])
    if len(jumps.levels) == 2:
        low, rise = float(jumps.levels[0]), float(jumps.levels[1] - jumps.levels[0])
        reading = Reading(u, values > low, low, rise)
        reader.recent.append(reading)
        if out.is_floating_point():
            return reader.fire(reading, out)
        reader.note(out, reading)
        return out
    if out.is_floating_point():
        return reader.fire_levels(u, out, height)
    reader.unread.add(getattr(func, "__name__", "function"))
    return out


def _name_lost(reader: Readings, name: str, args: tuple[Raw, ...], out: Tensor) -> None:
    """A mask that was read goes into a function that has no rule: what it gives has no potential."""
    masks = [a for a in args if isinstance(a, Tensor) and not a.is_floating_point()]
    if any(reader.reading(m) is not None for m in masks) and out.numel() > 1:
        reader.unread.add(name.strip("_"))


def _tensors(args: Iterable[Raw]) -> list[Tensor]:
    return [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]


def soft_alone(
    reader: Readings, func: Raw, args: tuple[Raw, ...], kwargs: Mapping[str, Raw], out: Raw
) -> None:
    """Where some of the arguments may be soft parts of spikes, so may be the result: its slope is kept."""
    if not reader.keep_own or not isinstance(out, Tensor) or not out.requires_grad:
        return
    if not any(isinstance(a, Tensor) and a in reader.soft for a in args):
        return
    with torch._C.DisableTorchFunction():
        own = [reader.soft.get(a, a) if isinstance(a, Tensor) else a for a in args]
        reader.soft[out] = func(*own, **kwargs)


def _two_values(out: Tensor) -> bool:
    """Do all elements take one of two values, up to rounding, and both occur?"""
    values = out.detach()
    sample = values.flatten()[:SAMPLE]
    for part in (sample, values):
        low, high = part.aminmax()
        near = NEAR * max(1.0, float(high - low))
        if not bool((((part - low) <= near) | ((high - part) <= near)).all()):
            return False
    return float(high - low) > 10 * NEAR


def _many_values(value: Raw) -> bool:
    """Does a tensor take many values, unlike spikes and sums of them?"""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() < 4:
        return False
    return len(value.detach().flatten()[:SAMPLE].unique()) > min(16, value.numel() // 2)
