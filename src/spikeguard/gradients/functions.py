"""Custom autograd functions, met where they are called, and the potential of those that give spikes.

``Function.apply`` ends in ``_SingleLevelFunction``, also where user code holds a bound ``apply``: an
attribute ``apply`` there meets every call of a thread that takes a gradient. The potential is read from the
comparison inside the function; else the function is computed once more as part of the graph; else its jumps
are searched for. The node of the graph then gives back ``g(u)`` times what it gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, _is_setup_context_defined, _SingleLevelFunction
from torch.overrides import _get_current_function_mode_stack

from spikeguard.gradients.comparisons import SpikeReader
from spikeguard.gradients.jumps import Jumps, few_values, find_jumps
from spikeguard.gradients.spike import Reading, Spike, Surrogates, Token

Grads = tuple[Tensor | None, ...]
Call = Callable[[], Any]


class _Meeting:
    """Installs the attribute while a gradient is taken in any thread."""

    lock, count = Lock(), 0

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[None]:
        with cls.lock:
            if not cls.count:
                setattr(_SingleLevelFunction, "apply", classmethod(_apply))  # noqa: B010
            cls.count += 1
        try:
            yield
        finally:
            with cls.lock:
                cls.count -= 1
                if not cls.count:
                    delattr(_SingleLevelFunction, "apply")


def _original(function: type[Any]) -> Callable[..., Any]:
    """What ``apply`` of a custom function ends in."""
    call: Callable[..., Any] = super(_SingleLevelFunction, function).apply  # type: ignore[misc]
    return call


def _apply(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
    call = _original(cls)
    modes = (m for m in reversed(_get_current_function_mode_stack()) if isinstance(m, FunctionReader))
    reader = next(modes, None)
    if reader is None or cls is Spike:
        return call(*args, **kwargs)
    return reader.meet(cls, args, lambda: call(*args, **kwargs))


@dataclass(frozen=True, eq=False)
class Potential:
    """``u`` of a function's spikes by value, and which of its tensors moves it, in which direction."""

    u: Tensor
    input: Tensor
    height: float | Tensor
    sign: float = 1.0


class Context:
    """Stands for the context of a custom function that is computed as part of the graph."""

    saved_tensors: tuple[Tensor, ...] = ()
    needs_input_grad: tuple[bool, ...] = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors

    def ignore(self, *_: object) -> None:
        """What a context is informed of for a backward pass that never comes."""

    save_for_forward = mark_dirty = mark_non_differentiable = set_materialize_grads = ignore


class FunctionReader(SpikeReader):
    """Reads comparisons and custom functions while a gradient is taken.

    ``unread``: names of the functions that give spikes whose potential could not be read.
    """

    def __init__(self, surrogates: Surrogates, keep_own: bool = False) -> None:
        super().__init__(surrogates, keep_own)
        self.unread: set[str] = set()
        self.ends: dict[type, tuple[float, float]] = {}
        self.jumps: dict[type, Jumps] = {}

    @contextmanager
    def reading_gradient(self) -> Iterator[None]:
        """While it is open, spikes are read in this thread."""
        with _Meeting.open(), self:
            yield

    def meet(self, function: type[Any], args: Sequence[Any], call: Call) -> Any:
        """The outputs of a custom function, its spikes with their surrogate."""
        if self.observed is not None or not _reached(args):
            return call()
        random = torch.get_rng_state()
        with self.observing() as seen:
            outputs = call()
        each = outputs if isinstance(outputs, tuple) else (outputs,)
        with torch._C.DisableTorchFunction():
            spikes = [o for o in each if isinstance(o, Tensor) and few_values(o)]
            if not spikes or (self.keep_own and any(s.requires_grad for s in spikes)):
                return outputs
            found = self._read(function, args, each[0], seen) if len(each) == 1 else None
        if found is not None:
            return self._hooked(each[0], args, found)
        again = self._computed_again(function, args, each, random)
        if again is not None:
            return again if isinstance(outputs, tuple) else again[0]
        if len(each) > 1:
            self.unread.add(function.__name__)
            return outputs
        with torch._C.DisableTorchFunction():
            found = self._searched(function, args, each[0]) or self._saved(function, args, each[0])
        return outputs if found is None else self._hooked(each[0], args, found)

    def _read(
        self, function: type[Any], args: Sequence[Any], out: Tensor, seen: Sequence[Reading]
    ) -> Potential | None:
        """The potential that a comparison inside the function had, if there is no doubt which one."""
        low, high = (float(t) for t in out.detach().aminmax())
        if low == high:
            low, high = self.ends.get(function, (min(low, 0.0), max(high, 1.0) if low >= 0 else -low))
        elif bool(((out == low) | (out == high)).all()):
            self.ends[function] = low, high
        else:
            return None
        mask = out.detach() > low
        rows = [r for r in seen if r.u.shape == out.shape]
        rows = [r if torch.equal(r.mask, mask) else r.turned() for r in rows]
        rows = [r for r in rows if torch.equal(r.mask, mask)]
        found = [p for r in rows for a in _inputs(args, out) if (p := _moved_by(a, args, r.u, high - low))]
        return found[0] if len(found) == 1 else None

    def _computed_again(
        self, function: type[Any], args: Sequence[Any], outputs: Sequence[Any], random: Tensor
    ) -> tuple[Any, ...] | None:
        """The function's outputs as part of the graph: its comparisons are met like those outside of it."""
        before = torch.get_rng_state()
        torch.set_rng_state(random)
        copies = [a.clone() if isinstance(a, Tensor) else a for a in args]
        try:
            with torch.enable_grad():
                bound = () if _is_setup_context_defined(function.setup_context) else (Context(),)
                again = function.forward(*bound, *copies)
        except Exception:  # whatever its code needs a real context or no graph for
            return None
        finally:
            torch.set_rng_state(before)
        each = again if isinstance(again, tuple) else (again,)
        with torch._C.DisableTorchFunction():
            pairs = list(zip(each, outputs, strict=False))
            same = len(each) == len(outputs) and all(_equal(a, b) for a, b in pairs)
            reached = any(isinstance(a, Tensor) and a.requires_grad and few_values(b) for a, b in pairs)
            return tuple(each) if same and reached else None

    def _searched(self, function: type[Any], args: Sequence[Any], out: Tensor) -> Potential | None:
        """The potential from where the output jumps."""
        for input in _inputs(args, out):

            def evaluate(values: Tensor, input: Tensor = input) -> Any:
                given = [values if a is input else a.detach() if isinstance(a, Tensor) else a for a in args]
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    return _original(function)(*given)

            v, known = input.detach(), self.jumps.get(function)
            if known is None or not known.explain(v, out):
                known = find_jumps(evaluate, v, out)
            if known is not None:
                self.jumps[function] = known
                u, height = known.nearest(v)
                return Potential(u, input, height)
        return None

    def _saved(self, function: type[Any], args: Sequence[Any], out: Tensor) -> Potential | None:
        """A guess, with a word about it: the first tensor that the function keeps, else straight-through."""
        self.unread.add(function.__name__)
        inputs = _inputs(args, out)
        if not inputs:
            return None
        kept = out.grad_fn.saved_tensors if isinstance(out.grad_fn, BackwardCFunction) else ()
        u = next((t for t in kept if t.is_floating_point() and t.shape == out.shape), None)
        return Potential(torch.empty(0) if u is None else u, inputs[0], 1.0)

    def _hooked(self, out: Tensor, args: Sequence[Any], found: Potential) -> Tensor:
        """The spikes, whose node gives back ``g(u)`` times what it gets."""
        with torch._C.DisableTorchFunction():
            u, tensors = found.u.detach(), [a for a in args if isinstance(a, Tensor)]
            if not isinstance(out.grad_fn, BackwardCFunction):  # the function gives no gradient at all
                with torch.enable_grad():
                    moved = found.sign * found.input
                    u = moved + (u - moved).detach()
                spikes: Tensor = Spike.apply(u, out.detach(), found.height, self.surrogates)
                return spikes
            token = out.grad_fn.spike_token = Token()
            at, factor = next(k for k, t in enumerate(tensors) if t is found.input), found.sign * found.height

            def hook(given: Grads, got: Grads) -> Grads | None:
                if got[0] is None:
                    return None
                with torch.no_grad(), torch._C.DisableTorchFunction():
                    g = got[0] * (self.surrogates.derivative(token, u) * factor if u.numel() else 1.0)
                return (*given[:at], g, *given[at + 1 :])

            out.grad_fn.register_hook(hook)
            return out


def _reached(args: Sequence[Any]) -> bool:
    """Does a gradient of the input reach a function with these arguments?"""
    with torch._C.DisableTorchFunction():
        tensors = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
        return torch.is_grad_enabled() and any(t.requires_grad and not t.is_leaf for t in tensors)


def _inputs(args: Sequence[Any], out: Tensor) -> list[Tensor]:
    """Arguments that could be the potential of spikes ``out``, up to a threshold."""
    return [a for a in args if isinstance(a, Tensor) and a.requires_grad and a.shape == out.shape]


def _moved_by(input: Tensor, args: Sequence[Any], u: Tensor, height: float) -> Potential | None:
    """The potential ``u``, if it is the input minus a threshold (or the reverse)."""
    v = input.detach()
    others = [a.detach() for a in args if isinstance(a, Tensor) and a is not input and a.is_floating_point()]
    for sign in (1.0, -1.0):
        rest = u - sign * v
        scale = 1e-5 * (1.0 + float(rest.abs().max()))
        if float(rest.max() - rest.min()) <= scale:
            return Potential(u, input, height, sign)
        for other in others:
            if other.dim() <= rest.dim() and bool(((rest + sign * other).abs() <= scale).all()):
                return Potential(u, input, height, sign)
    return None


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a.detach(), b.detach())
    return type(a) is type(b)
