"""Comparisons behind functions that rise: the potential is what the function was given, not what it gave.

``relu(v - 1) > 0``, ``sigmoid(v) > 0.5`` and ``v.clamp(0, 1).round()`` all fire where ``v`` crosses a value,
which is found by bisection. The function's own slope, often 0, is no part of the spike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from spikeguard.gradients.jumps import LEVELS, Jumps, few_values
from spikeguard.gradients.readings import Readings
from spikeguard.gradients.spike import Raw, Reading

Function = Callable[..., Raw]
Args = tuple[Raw, ...]
Kwargs = Mapping[str, Raw]

RISES = {"relu", "relu6", "clamp", "clip", "hardtanh", "clamp_min", "clamp_max", "sigmoid", "tanh"}
RISES |= {
    "softplus",
    "leaky_relu",
    "elu",
    "hardsigmoid",
    "maximum",
    "minimum",
    "threshold",
    "_threshold",
    "hardshrink",
}
ROUND = {"round", "floor", "ceil", "trunc", "fix"}
REACH, HALVINGS, TINY = 1e4, 200, 1e-30


class Source(NamedTuple):
    """What a rising function was given, and the function of one number."""

    input: Tensor
    evaluate: Callable[[Tensor], Tensor]


def note_source(reader: Readings, func: Function, args: Args, kwargs: Kwargs, out: object) -> None:
    """Remember what ``out = func(input, ...)`` was computed from, if the function rises with it."""
    if not args or not isinstance(out, Tensor) or not isinstance(args[0], Tensor) or out is args[0]:
        return
    input, rest = args[0], (*args[1:], *kwargs.values())
    if out.shape != input.shape or any(isinstance(r, Tensor) and r.numel() != 1 for r in rest):
        return
    number = [r.detach().reshape(()) if isinstance(r, Tensor) else r for r in args[1:]]

    def evaluate(at: Tensor) -> Tensor:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            value: Tensor = func(at, *number, **kwargs)
            return value

    reader.sources[out] = Source(input, evaluate)


def chain(reader: Readings, value: object) -> Source | None:
    """The first tensor behind the rising functions that gave ``value``, and all of them in one."""
    found = reader.sources.get(value) if isinstance(value, Tensor) else None
    if not isinstance(found, Source):
        return None
    before = chain(reader, found.input)
    if before is None:
        return found
    return Source(before.input, lambda at: found.evaluate(before.evaluate(at)))


def crossing(source: Source, reached: Callable[[Tensor], bool]) -> float | None:
    """The largest number at which ``reached(f(number))`` does not hold; None if it always or never does."""
    dtype, device = source.input.dtype, source.input.device

    def holds(at: float) -> bool:
        return reached(source.evaluate(torch.full((), at, dtype=dtype, device=device)))

    low, high = -REACH, REACH
    if holds(low) or not holds(high):
        return None
    for _ in range(HALVINGS):
        middle = float(
            torch.tensor((low + high) / 2, dtype=dtype, device=device)
        )  # one that the input can take
        if middle in (low, high):
            break
        low, high = (low, middle) if holds(middle) else (middle, high)
    return 0.0 if abs(low) < TINY else low


def behind(reader: Readings, value: object, limit: object, strict: bool) -> Tensor | None:
    """The potential of ``value > limit`` (or ``>=``) before rising functions, in the graph."""
    source = chain(reader, value)
    if source is None or (isinstance(limit, Tensor) and limit.numel() != 1) or isinstance(limit, bool):
        return None
    if not isinstance(limit, (int, float, Tensor)):
        return None
    number = float(limit)
    at = crossing(source, lambda f: bool(f > number) if strict else bool(f >= number))
    return None if at is None else source.input - at


def ends_of(source: Source) -> tuple[float, float]:
    """The lowest and the highest value of rising functions."""
    low, high = (source.evaluate(source.input.new_tensor(at)) for at in (-REACH, REACH))
    return float(low), float(high)


def at_an_end(reader: Readings, value: object, limit: object) -> bool | None:
    """Whether ``limit`` is the highest (True) or lowest (False) value of rising functions; else None."""
    source = chain(reader, value)
    if source is None or not isinstance(limit, (int, float)):
        return None
    ends = ends_of(source)
    return None if limit not in ends or ends[0] == ends[1] else limit == ends[1]


def equal(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """``relu(u) != 0`` and ``u.clamp(0, 1) == 1`` are comparisons."""
    mask = func(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        found = reader.reading(args[0])
        if found is not None and found.complete and isinstance(mask, Tensor):
            same = replace(found, low=0.0, height=1.0)
            for one in (same, same.turned()):
                if torch.equal(mask, one.mask):
                    return reader.note(mask, one)
            return mask
        end = at_an_end(reader, args[0], args[1]) if len(args) == 2 else None
        if end is None or not isinstance(mask, Tensor):
            return mask
        u = behind(reader, args[0], args[1], strict=not end)
        if u is not None:
            above = end == (func.__name__ in ("eq", "__eq__"))
            reader.compared(mask, lambda: u if above else -u)
    return mask


def _reaches(level: float, value: Tensor) -> bool:
    return bool(value >= level)


def rounded(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """A number rounded to few levels, as of a clamped one: spikes with a threshold between two levels."""
    out = func(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        if kwargs or len(args) != 1 or not isinstance(out, Tensor) or not reader.wanted(args[0]):
            return out
        if (reader.keep_own and out.requires_grad) or not few_values(out) or few_values(args[0]):
            return out
        note_source(reader, func, args, kwargs, out)
        return _fired_levels(reader, out)


def clipped(reader: Readings, before: Raw, out: Raw) -> Raw:
    """``out``, a clamped number that was rounded ``before``: only the jumps that are left are spikes."""
    source = chain(reader, out)
    if source is None or not isinstance(before, Tensor) or not reader.wanted(source.input):
        return out
    with torch._C.DisableTorchFunction():
        if not few_values(before) or few_values(source.input) or (reader.keep_own and out.requires_grad):
            return out
        return _fired_levels(reader, out)


def _fired_levels(reader: Readings, out: Tensor) -> Tensor:
    """The few values that rising functions gave of many, as spikes where the first input crosses a level."""
    source, levels = chain(reader, out), out.detach().unique()
    if source is None or len(levels) < 2 or (reader.opens and len(levels) > 2):
        return out
    low, high = ends_of(source)
    few = high - low < LEVELS
    steps = torch.arange(low, high + 1, device=out.device) if few else levels.to(out.dtype)
    at = [crossing(source, partial(_reaches, level)) for level in steps[1:].tolist()]
    if any(a is None for a in at):
        return out
    jumps = Jumps(
        steps.to(out), torch.tensor(at, dtype=out.dtype, device=out.device).view(-1, *[1] * out.dim())
    )
    with torch.enable_grad():
        u, height = jumps.nearest(source.input)
    if len(steps) == 2:
        low, rise = float(steps[0]), float(steps[1] - steps[0])
        return reader.fire(Reading(u, out > low, low, rise), out)
    fired = reader.fire_levels(u, out, height)
    reader.sources[fired] = reader.sources[out]  # for what clips it
    return fired


RULES = dict.fromkeys(("eq", "ne", "__eq__", "__ne__"), equal)
