"""Spikes that plain torch expressions compute: a mode that reads comparisons while a gradient is taken.

``v > threshold`` has the potential ``u = v - threshold``. Where its outcome becomes a float tensor, or a sum
of tensors takes exactly its values (a straight-through expression: hard and soft spikes, one of them
detached), that tensor is replaced by a spike of ``u`` with the same values. What the user detaches stays
detached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from spikeguard.gradients.spike import Raw, Reading, Surrogates, spike

Function = Callable[..., Raw]
Args = tuple[Raw, ...]
Kwargs = Mapping[str, Raw]

ABOVE = {"gt", "ge", "greater", "greater_equal", "__gt__", "__ge__"}
BELOW = {"lt", "le", "less", "less_equal", "__lt__", "__le__"}
INVERT = {"logical_not", "bitwise_not", "__invert__"}
GATE = {"logical_and", "bitwise_and", "__and__", "__rand__"}
CONVERT = {"float", "double", "half", "bfloat16", "to", "type", "type_as", "int", "long", "bool"}
CONVERT |= {"clone", "contiguous", "detach", "requires_grad_"}
RESHAPE = {"view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "permute", "transpose"}
RESHAPE |= {"expand", "expand_as", "repeat", "movedim", "swapaxes", "__getitem__"}
SUMS = {"add", "sub", "subtract", "rsub", "__add__", "__radd__", "__sub__", "__rsub__"}
SCALE = {"mul", "multiply", "__mul__", "__rmul__"}
CLIP = {"relu", "clamp", "clip", "hardtanh", "clamp_min", "clamp_max"}
SOFT = {"sigmoid", "tanh", "clamp", "clip", "hardtanh"}
"""Functions that BPDA opens, unless they are the soft part of a straight-through expression."""
STEPS = {"sign": (-1.0, 2.0), "sgn": (-1.0, 2.0), "heaviside": (0.0, 1.0)}
"""Functions that are steps themselves: lowest value and height."""
FILL = {"masked_fill", "masked_fill_", "__setitem__"}
DATA = Tensor.data.__get__  # type: ignore[attr-defined]
BUILT_IN = {"aten", "prim", "prims"}
"""Namespaces of operators that are not written in Python."""
CLOSE = 1e-5


@contextmanager
def autograd_on() -> Iterator[None]:
    """Operations inside are recorded, also where a custom operator runs below autograd."""
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False):
        yield


class SpikeReader(TorchFunctionMode):
    """Reads comparisons. ``surrogates``: what spikes get; ``keep_own``: straight-through expressions keep
    the gradient of their soft part.

    ``observed``: inside a custom function, whose graph nobody sees, the comparisons made there.
    """

    def __init__(self, surrogates: Surrogates, keep_own: bool = False) -> None:
        super().__init__()
        self.surrogates, self.keep_own = surrogates, keep_own
        self.readings, self.zeros = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self.soft = WeakTensorKeyDictionary()
        self.observed: list[Reading] | None = None
        self.fired: list[tuple[Reading, Tensor]] | None = None
        self.recording = False

    def __torch_function__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        kwargs = kwargs or {}
        if not self.recording:
            return self._handled(func, args, kwargs)
        with autograd_on():
            return self._handled(func, args, kwargs)

    def _handled(self, func: Function, args: Args, kwargs: Kwargs) -> object:
        if isinstance(func, OpOverload) and func.namespace not in BUILT_IN:
            with self:
                return _dispatched(func, args, kwargs)
        rule = RULES.get(getattr(func, "__name__", ""))
        if func == DATA:
            rule = _convert
        if rule is None or "out" in kwargs:
            out = func(*args, **kwargs)
            if getattr(func, "__name__", "").endswith("_") and args and isinstance(args[0], Tensor):
                self.readings.pop(args[0], None)  # written into
            return out
        return rule(self, func, args, kwargs)

    @contextmanager
    def below_autograd(self) -> Iterator[None]:
        """Operations are recorded for the graph even where a custom operator runs below autograd."""
        before, self.recording = self.recording, True
        try:
            yield
        finally:
            self.recording = before

    @contextmanager
    def without_spikes(self) -> Iterator[list[tuple[Reading, Tensor]]]:
        """Spikes are noted with their values, and are constants for the gradient."""
        before, self.fired = self.fired, []
        try:
            with self.below_autograd():
                yield self.fired
        finally:
            self.fired = before

    @contextmanager
    def observing(self) -> Iterator[list[Reading]]:
        """The comparisons made inside, by value only."""
        before, self.observed = self.observed, []
        try:
            yield self.observed
        finally:
            self.observed = before

    def reading(self, value: object) -> Reading | None:
        """What is known of a tensor."""
        found = self.readings.get(value) if isinstance(value, Tensor) else None
        return found if isinstance(found, Reading) else None

    def note(self, out: object, reading: Reading) -> object:
        """Remember what is known of ``out``."""
        if isinstance(out, Tensor) and out.shape == reading.mask.shape:
            self.readings[out] = reading
        return out

    def fire(self, reading: Reading, value: Tensor, height: float | Tensor | None = None) -> Tensor:
        """``value`` as spikes of the potential that was read, if a graph is wanted here."""
        if self.fired is not None:
            self.fired.append((reading, value.detach()))
        elif torch.is_grad_enabled() and reading.u.requires_grad:
            rise = reading.height if height is None else height
            value = spike(reading.u, value, rise, self.surrogates)
        self.readings[value] = reading
        return value

    def compared(self, mask: object, u: Callable[[], Tensor], low: float = 0.0, height: float = 1.0) -> None:
        """Note a comparison with the potential ``u``, if a gradient can reach it."""
        if not isinstance(mask, Tensor):
            return
        with torch.set_grad_enabled(self.observed is None):
            potential = u()
        if potential.shape != mask.shape or not potential.is_floating_point():
            return
        reading = Reading(potential, mask if mask.dtype == torch.bool else mask > low, low, height)
        if self.observed is not None:
            self.observed.append(reading)
        elif potential.requires_grad:
            self.readings[mask] = reading


def _dispatched(func: OpOverload, args: Args, kwargs: Kwargs) -> object:
    """A custom operator, with modes at work inside: a plain call would leave the one that calls out."""
    tensors = [t for t in pytree.tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor)]
    if not tensors:
        return func(*args, **kwargs)
    keys = torch._C._dispatch_tls_local_include_set()
    for tensor in tensors:
        keys = keys | torch._C._dispatch_keys(tensor)
    return func.redispatch(keys - torch._C._dispatch_tls_local_exclude_set(), *args, **kwargs)


def _floats(values: Sequence[object]) -> bool:
    return any(isinstance(v, Tensor) and v.is_floating_point() for v in values)


def _difference(a: Tensor | float, b: Tensor | float) -> Tensor:
    difference = a - b
    assert isinstance(difference, Tensor)
    return difference


def _compare(reader: SpikeReader, func: Function, args: Args, kwargs: Kwargs) -> object:
    mask, pair = func(*args, **kwargs), (*args, *kwargs.values())[:2]
    a, b = pair if func.__name__ in ABOVE else pair[::-1]
    with torch._C.DisableTorchFunction():
        spikes = reader.reading(pair[0])
        if spikes is not None and spikes.complete and isinstance(pair[1], (int, float)):
            if spikes.low <= pair[1] <= spikes.low + spikes.height:  # spikes made boolean again
                reader.note(mask, spikes if func.__name__ in ABOVE else spikes.turned())
        elif _floats(pair):
            reader.compared(mask, lambda: _difference(a, b))
    return mask


def _step(reader: SpikeReader, func: Function, args: Args, kwargs: Kwargs) -> object:
    low, height = STEPS[func.__name__]
    out = func(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        reader.compared(out, lambda: args[0] * 1, low, height)
        found = reader.reading(out)
        return reader.fire(found, out) if found is not None else out


def _invert(reader: SpikeReader, func: Function, args: Args, kwargs: Kwargs) -> object:
    out, found = func(*args, **kwargs), reader.reading(args[0])
    with torch._C.DisableTorchFunction():
        return out if found is None else reader.note(out, found.turned())


def _gate(reader: SpikeReader, func: Function, args: Args, kwargs: Kwargs) -> object:
    """A comparison and another condition: spikes only where that holds, and slopes too."""
    out = func(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        for one, other in (args[:2], args[1::-1]):
            found = reader.reading(one)
            if found is None or not isinstance(other, Tensor) or not isinstance(out, Tensor):
                continue
            with torch.enable_grad():
                u = torch.where(other.bool(), found.u, found.u.detach() - 1e4)
            return reader.note(out, replace(found, u=u, mask=out.bool()))
    return out


def _convert(reader: SpikeReader, func: Function, args: Args, kwargs: Kwargs) -> object:
    """Another type, a copy, a detached copy."""
    out, found = func(*args, **kwargs), reader.reading(args[0])
    if found is None or not isinstance(out, Tensor) or out is args[0]:
        return out
    with torch._C.DisableTorchFunction():
        if out.is_floating_point() and not args[0].is_floating_point():
            return reader.fire(found, out)
        return reader.note(out, found)


def _reshape(reader: SpikeReader, func: Function, args: Args, kwargs: Kwargs) -> object:
    out, found = func(*args, **kwargs), reader.reading(args[0])
    if found is None or not found.complete or not isinstance(out, Tensor):
        return out
    with torch._C.DisableTorchFunction():
        if out.shape == found.mask.shape:
            return reader.note(out, found)
        with torch.enable_grad():
            u, mask = (func(t, *args[1:], **kwargs) for t in (found.u, found.mask))
        return reader.note(out, replace(found, u=u, mask=mask))


def _sum(reader: SpikeReader, func: Function, args: Args, kwargs: Kwargs) -> object:
    """A term of a straight-through expression; the one that cancels the others makes the sum spikes."""
    out, pair = func(*args, **kwargs), args[:2]
    if not isinstance(out, Tensor) or not out.is_floating_point():
        return out
    with torch._C.DisableTorchFunction():
        found = [r for r in map(reader.reading, pair) if r is not None]
        if not found and _same_memory(*pair):
            reader.zeros[out] = pair[0] if pair[0].requires_grad else pair[1]
        if len(found) != 1 or out.shape != found[0].mask.shape:
            return out
        return _added(reader, out, found[0], pair[0] if reader.reading(pair[1]) else pair[1])


def _added(reader: SpikeReader, out: Tensor, found: Reading, term: object) -> object:
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
        return reader.fire(whole, out)
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


def _scale(reader: SpikeReader, func: Function, args: Args, kwargs: Kwargs) -> object:
    """Spikes times a constant, or a comparison times a number."""
    out, pair = func(*args, **kwargs), args[:2]
    found = next((r for r in map(reader.reading, pair) if r is not None), None)
    if found is None or not found.complete or not isinstance(out, Tensor):
        return out
    one, other = pair if reader.reading(pair[0]) is found else pair[::-1]
    with torch._C.DisableTorchFunction():
        if isinstance(other, Tensor) and other.dtype == torch.bool == one.dtype:
            return _gate(reader, lambda *_: out, pair, {})
        if isinstance(other, Tensor) and (other.requires_grad or other.numel() > 1):
            return out
        factor = float(other)
        scaled = replace(found, low=found.low * factor, height=found.height * factor)
        opened = not one.is_floating_point() and out.is_floating_point()
        return reader.fire(scaled, out) if opened else reader.note(out, scaled)


def _soften(reader: SpikeReader, func: Function, args: Args, kwargs: Kwargs) -> object:
    """What may be a surrogate, with its own slope: what modes outside make of it is for other uses."""
    out = func(*args, **kwargs)
    if reader.keep_own and isinstance(out, Tensor) and out.requires_grad:
        with torch._C.DisableTorchFunction():
            reader.soft[out] = func(*args, **kwargs)
    return out


def _clip(reader: SpikeReader, func: Function, args: Args, kwargs: Kwargs) -> object:
    """Spikes cut off on a side, as the lower one of a sign."""
    found = reader.reading(args[0])
    if found is None and func.__name__ in SOFT:
        return _soften(reader, func, args, kwargs)
    out = func(*args, **kwargs)
    if found is None or not found.complete or not args[0].is_floating_point():
        return out
    with torch._C.DisableTorchFunction():
        ends = torch.tensor([found.low, found.low + found.height], dtype=out.dtype, device=out.device)
        low, high = func(ends, *args[1:], **kwargs).tolist()
        return reader.fire(replace(found, low=low, height=high - low), out)


def _where(reader: SpikeReader, func: Function, args: Args, kwargs: Kwargs) -> object:
    """One constant where the comparison holds, another one elsewhere."""
    out = func(*args, **kwargs)
    given = (*args, *kwargs.values())
    if len(given) != 3:
        return out
    condition, *values = (given[1], given[0], given[2]) if reader.reading(given[0]) is None else given
    found = reader.reading(condition)
    with torch._C.DisableTorchFunction():
        constants = not any(isinstance(v, Tensor) and v.requires_grad for v in values)
        if found is None or not constants or not out.is_floating_point() or out.shape != found.mask.shape:
            return out
        a, b = (torch.as_tensor(v, dtype=out.dtype, device=out.device) for v in values)
        high, low = (_constant(t) for t in (a, b))
        if high is not None and low is not None:
            return reader.fire(replace(found, low=low, height=high - low), out)
        return reader.fire(replace(found, complete=False), out, a - b)


def _constant(values: Tensor) -> float | None:
    """The one value of a tensor, if it has only one."""
    first = values.flatten()[0]
    return float(first) if bool((values == first).all()) else None


def _fill(reader: SpikeReader, func: Function, args: Args, kwargs: Kwargs) -> object:
    """A constant written where the comparison holds: spikes, if all else is constant as well."""
    out = func(*args, **kwargs)
    target = args[0] if out is None else out
    found, value = reader.reading(args[1]), args[2]
    if found is None or (isinstance(value, Tensor) and value.numel() > 1):
        return out
    with torch._C.DisableTorchFunction():
        if target.shape != found.mask.shape or target.requires_grad or bool(found.mask.all()):
            return out
        low = _constant(target[~found.mask])
        if low is None:
            return out
        filled = replace(found, low=low, height=float(value) - low)
        spikes = reader.fire(filled, target)
        if target is not args[0]:
            return spikes
        if spikes is not target:
            target.copy_(spikes)
        reader.note(target, filled)
        return out


Rule = Callable[[SpikeReader, Function, Args, Kwargs], object]
RULES: dict[str, Rule] = {
    **dict.fromkeys(ABOVE | BELOW, _compare),
    **dict.fromkeys(INVERT, _invert),
    **dict.fromkeys(GATE, _gate),
    **dict.fromkeys(CONVERT, _convert),
    **dict.fromkeys(RESHAPE, _reshape),
    **dict.fromkeys(SUMS, _sum),
    **dict.fromkeys(SCALE, _scale),
    **dict.fromkeys(SOFT, _soften),
    **dict.fromkeys(CLIP, _clip),
    **dict.fromkeys(STEPS, _step),
    **dict.fromkeys(FILL, _fill),
    "where": _where,
}
