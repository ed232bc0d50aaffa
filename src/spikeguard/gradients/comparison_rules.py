"""What plain torch functions make of spikes: a rule for each, by its name.

``v > threshold`` has the potential ``u = v - threshold``. Where its outcome becomes a float tensor, or a sum
of tensors takes exactly its values (a straight-through expression: hard and soft spikes, one of them
detached), that tensor is replaced by a spike of ``u`` with the same values. What the user detaches stays
detached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from spikeguard.gradients import assembled, monotone, sums
from spikeguard.gradients.by_value import made_spikes, put_in_place
from spikeguard.gradients.readings import Readings
from spikeguard.gradients.spike import Raw, Reading

Function = Callable[..., Raw]
Args = tuple[Raw, ...]
Kwargs = Mapping[str, Raw]

ABOVE = {"gt", "ge", "greater", "greater_equal", "__gt__", "__ge__"}
BELOW = {"lt", "le", "less", "less_equal", "__lt__", "__le__"}
INVERT = {"logical_not", "bitwise_not", "__invert__"}
GATE = {"logical_and", "bitwise_and", "__and__", "__rand__"}
STRICT = {"gt", "greater", "__gt__", "le", "less_equal", "__le__"}
"""Those that hold, or end to hold, only past the threshold."""
IN_PLACE = {"gt_", "ge_", "greater_", "greater_equal_", "lt_", "le_", "less_", "less_equal_"}
EITHER = {"logical_or", "bitwise_or", "__or__", "__ror__", "logical_xor", "bitwise_xor", "__xor__"}
CONVERT = {"float", "double", "half", "bfloat16", "to", "type", "type_as", "int", "long", "bool"}
CONVERT |= {"clone", "contiguous", "detach", "requires_grad_", "as_tensor", "asarray"}
RESHAPE = {"view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "permute", "transpose"}
RESHAPE |= {"expand", "expand_as", "repeat", "movedim", "swapaxes", "__getitem__"}
SCALE = {"mul", "multiply", "__mul__", "__rmul__"}
CLIP = {"relu", "clamp", "clip", "hardtanh", "clamp_min", "clamp_max"}
SOFT = {"sigmoid", "tanh", "clamp", "clip", "hardtanh"}
"""Functions that BPDA opens, unless they are the soft part of a straight-through expression."""
STEPS = {"sign": (-1.0, 2.0), "sgn": (-1.0, 2.0), "heaviside": (0.0, 1.0)}
"""Functions that are steps themselves: lowest value and height."""
DATA = Tensor.data.__get__  # type: ignore[attr-defined]
SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


def _floats(values: Sequence[object]) -> bool:
    return any(isinstance(v, Tensor) and v.is_floating_point() for v in values)


def _difference(a: Tensor | float, b: Tensor | float) -> Tensor:
    difference = a - b
    assert isinstance(difference, Tensor)
    return difference


def _compare(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    mask, pair = func(*args, **kwargs), (*args, *kwargs.values())[:2]
    above = func.__name__ in ABOVE
    a, b = pair if above else pair[::-1]
    with torch._C.DisableTorchFunction():
        spikes = reader.reading(pair[0])
        if spikes is not None and spikes.complete and isinstance(pair[1], (int, float)):
            if spikes.low <= pair[1] <= spikes.low + spikes.height:  # spikes made boolean again
                reader.note(mask, as_mask(spikes if above else spikes.turned()))
        elif _floats(pair):
            behind = monotone.behind(reader, pair[0], pair[1], strict=func.__name__ in STRICT)
            u = (lambda: _difference(a, b)) if behind is None else (lambda: behind if above else -behind)
            reader.compared(mask, u)
            _note_detached(reader, mask, a, b)
    return mask


def _note_detached(reader: Readings, mask: Tensor, a: object, b: object) -> None:
    """The hard part of a straight-through expression may be a comparison of a detached potential."""
    if reader.observed is not None or reader.reading(mask) is not None or not isinstance(mask, Tensor):
        return
    with torch.enable_grad():
        u = _difference(*sums.attached(reader, (a, b)))
    if u.requires_grad and u.shape == mask.shape:
        reader.recent.append(Reading(u, mask))


def _compare_in_place(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """``v.gt_(threshold)``: numbers 0 and 1 in place of the potential."""
    before = args[0].clone() if isinstance(args[0], Tensor) else args[0]
    out = func(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        a, b = (before, args[1]) if func.__name__.rstrip("_") in ABOVE else (args[1], before)
        reader.compared(out, lambda: _difference(a, b))
        found = reader.reading(out)
        return out if found is None else put_in_place(out, reader.fire(found, out))


def as_mask(found: Reading) -> Reading:
    """The reading of spikes whose mask alone is kept: a float tensor of it is 0 and 1."""
    return replace(found, low=0.0, height=1.0)


def _step(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    low, height = STEPS[func.__name__]
    out = func(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        behind = monotone.behind(reader, args[0], 0.0, strict=True)
        if behind is not None and monotone.at_an_end(reader, args[0], 0.0) is False:
            low, height = 0.0, 1.0
        reader.compared(out, lambda: args[0] * 1 if behind is None else behind, low, height)
        found = reader.reading(out)
        return reader.fire(found, out) if found is not None else out


def _invert(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    out, found = func(*args, **kwargs), reader.reading(args[0])
    with torch._C.DisableTorchFunction():
        return out if found is None else reader.note(out, found.turned())


def _gate(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """A comparison and another condition: spikes only where that holds, and slopes too."""
    out = func(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        for one, other in (args[:2], args[1::-1]):
            found = reader.reading(one)
            if found is None or not isinstance(other, Tensor) or not isinstance(out, Tensor):
                continue
            with torch.enable_grad():
                u = torch.where(other.bool(), found.u, found.u.detach() - assembled.OUT_OF_REACH)
            return reader.note(out, replace(found, u=u, mask=out.bool()))
    return out


def _convert(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """Another type, a copy, a detached copy."""
    out, found = func(*args, **kwargs), reader.reading(args[0])
    if isinstance(out, Tensor) and out is not args[0] and reader.wanted(args[0]) and not out.requires_grad:
        reader.origins[out] = args[0]
    if found is None or not isinstance(out, Tensor) or out is args[0]:
        return out
    with torch._C.DisableTorchFunction():
        if out.is_floating_point() and not args[0].is_floating_point():
            return reader.fire(found, out)
        if out.dtype == torch.bool != args[0].dtype:
            return reader.note(out, as_mask(found)) if torch.equal(out, found.mask) else out
        return reader.note(out, found)


def _reshape(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    out, found = func(*args, **kwargs), reader.reading(args[0])
    if found is None or not found.complete or not isinstance(out, Tensor):
        return out
    with torch._C.DisableTorchFunction():
        if out.shape == found.mask.shape:
            return reader.note(out, found)
        with torch.enable_grad():
            u, mask = (func(t, *args[1:], **kwargs) for t in (found.u, found.mask))
        return reader.note(out, replace(found, u=u, mask=mask))


def _scale(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """Spikes times a constant, or a comparison times a number."""
    out, pair = func(*args, **kwargs), args[:2]
    found = next((r for r in map(reader.reading, pair) if r is not None), None)
    if found is None or not found.complete or not isinstance(out, Tensor):
        return out
    one, other = pair if reader.reading(pair[0]) is found else pair[::-1]
    with torch._C.DisableTorchFunction():
        if isinstance(other, Tensor) and other.dtype == torch.bool == one.dtype:
            return _gate(reader, lambda *_: out, pair, {})
        factor = assembled.constant(other) if isinstance(other, Tensor) else float(other)
        if isinstance(other, Tensor) and (other.requires_grad or factor is None):
            return _selected(reader, found, one, other, out)
        assert factor is not None
        scaled = replace(found, low=found.low * factor, height=found.height * factor)
        opened = not one.is_floating_point() and out.is_floating_point()
        return reader.fire(scaled, out) if opened else reader.note(out, scaled)


def _selected(reader: Readings, found: Reading, one: Tensor, other: Tensor, out: Tensor) -> Tensor:
    """A comparison times other numbers: what it selects."""
    if one.is_floating_point() or out.shape != found.mask.shape or not out.is_floating_point():
        return out
    if not other.requires_grad:
        return reader.fire(replace(found, complete=False), out, other * found.height)
    slope = assembled.mask_slope(reader, found, other, torch.zeros_like(other)) if reader.opens else None
    return out if slope is None else out + slope


def _either(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """A comparison or another condition; exclusive: the comparison, or its contrary where that holds."""
    out = func(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        for one, other in (args[:2], args[1::-1]):
            found = reader.reading(one)
            second = reader.reading(other)
            if found is None or not isinstance(out, Tensor):
                continue
            holds = torch.as_tensor(other).bool()
            with torch.enable_grad():
                if "xor" in func.__name__:
                    u = torch.where(holds, -found.u, found.u)
                elif second is not None:
                    u = torch.maximum(found.u, second.u)
                else:
                    u = torch.where(holds, found.u.detach() + assembled.OUT_OF_REACH, found.u)
            return reader.note(out, replace(found, u=u, mask=out.bool()))
    return out


def _soften(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """What may be a surrogate, with its own slope: what modes outside make of it is for other uses."""
    out = func(*args, **kwargs)
    monotone.note_source(reader, func, args, kwargs, out)
    if reader.keep_own and isinstance(out, Tensor) and out.requires_grad:
        with torch._C.DisableTorchFunction():
            own = reader.soft.get(args[0], args[0])
            reader.soft[out] = func(own, *args[1:], **kwargs)
    return out


def _clip(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """Spikes cut off on a side, as the lower one of a sign."""
    found = reader.reading(args[0])
    if found is None and func.__name__ in SOFT:
        return monotone.clipped(reader, args[0], _soften(reader, func, args, kwargs))
    out = func(*args, **kwargs)
    if found is None or not found.complete or not args[0].is_floating_point():
        monotone.note_source(reader, func, args, kwargs, out)
        return monotone.clipped(reader, args[0], out)
    with torch._C.DisableTorchFunction():
        ends = torch.tensor([found.low, found.low + found.height], dtype=out.dtype, device=out.device)
        low, high = func(ends, *args[1:], **kwargs).tolist()
        return reader.fire(replace(found, low=low, height=high - low), out)


def _where(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """One constant where the comparison holds, another one elsewhere."""
    out = func(*args, **kwargs)
    given = (*args, *kwargs.values())
    if len(given) == 1:
        return assembled.indices(reader, lambda *_: out, args, {})
    if len(given) != 3:
        return out
    condition, *values = (given[1], given[0], given[2]) if reader.reading(given[0]) is None else given
    found = reader.reading(condition)
    with torch._C.DisableTorchFunction():
        constants = not any(isinstance(v, Tensor) and v.requires_grad for v in values)
        if found is None or not out.is_floating_point() or out.shape != found.mask.shape:
            return out
        if not constants:
            slope = assembled.mask_slope(reader, found, *values) if reader.opens else None
            return out if slope is None else out + slope
        a, b = (torch.as_tensor(v, dtype=out.dtype, device=out.device) for v in values)
        high, low = (assembled.constant(t) for t in (a, b))
        if high is not None and low is not None:
            return reader.fire(replace(found, low=low, height=high - low), out)
        return reader.fire(replace(found, complete=False), out, a - b)


def _set_data(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    """``soft.data = hard``: a straight-through expression."""
    soft = args[0]
    func(*args)
    with torch._C.DisableTorchFunction():
        put_in_place(soft, made_spikes(reader, soft, "data"))
    return None


def _round(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    rule = monotone.rounded if reader.reading(args[0]) is None else _clip
    return rule(reader, func, args, kwargs)


def _rise(reader: Readings, func: Function, args: Args, kwargs: Kwargs) -> object:
    out = func(*args, **kwargs)
    monotone.note_source(reader, func, args, kwargs, out)
    return out


Rule = Callable[[Readings, Function, Args, Kwargs], object]
RULES: dict[str, Rule] = {
    **monotone.RULES,
    **assembled.RULES,
    **dict.fromkeys(monotone.ROUND, _round),
    **dict.fromkeys(monotone.RISES, _rise),
    **dict.fromkeys(ABOVE | BELOW, _compare),
    **dict.fromkeys(IN_PLACE, _compare_in_place),
    **dict.fromkeys(INVERT, _invert),
    **dict.fromkeys(GATE, _gate),
    **dict.fromkeys(EITHER, _either),
    **dict.fromkeys(CONVERT, _convert),
    **dict.fromkeys(RESHAPE, _reshape),
    **sums.RULES,
    **dict.fromkeys(SCALE, _scale),
    **dict.fromkeys(SOFT, _soften),
    **dict.fromkeys(CLIP, _clip),
    **dict.fromkeys(STEPS, _step),
    "where": _where,
}


def rule_of(func: Function) -> Rule | None:
    """The rule of a torch function, None for one that makes nothing of spikes."""
    if func == SET_DATA:
        return _set_data
    return _convert if func == DATA else RULES.get(getattr(func, "__name__", ""))
