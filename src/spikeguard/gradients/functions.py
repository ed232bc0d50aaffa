"""Custom autograd functions, met where they are called, and the potential of those that give spikes.

``Function.apply`` ends in ``_SingleLevelFunction``, also where user code holds a bound ``apply``: an
attribute ``apply`` there meets every call of a thread that takes a gradient. The potential is read from the
comparison inside the function; else the function is computed once more as part of the graph; else its jumps
are searched for. The node of the graph then gives back ``g(u)`` times what it gets.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._C import Graph
from torch.autograd.function import BackwardCFunction, _SingleLevelFunction
from torch.overrides import _get_current_function_mode_stack
from torch.utils import checkpoint

from spikeguard.gradients import scripts
from spikeguard.gradients.comparisons import SpikeReader
from spikeguard.gradients.installed import Shared, replaced
from spikeguard.gradients.jumps import Jumps, few_values, find_jumps
from spikeguard.gradients.recomputed import computed_again
from spikeguard.gradients.spike import Raw, Reading, Spike, Surrogates, Token, spike

_thread = threading.local()  # the reader, where a mode handles a call and is not on the stack
Grads = tuple[Tensor | None, ...]
Call = Callable[[], Raw]


@contextmanager
def _met() -> Iterator[None]:
    """Calls of custom functions and scripts, and backward passes, come to the reader of their thread."""
    with (
        replaced(_SingleLevelFunction, "apply", lambda _: classmethod(_apply)),
        replaced(torch.autograd, "_engine_run_backward", _read_backward),
        replaced(checkpoint, "detach_variable", _detach_for_checkpoint),
        scripts.calls_to(_run_script),
    ):
        yield


_meeting = Shared(_met)


def _original(function: type[Raw]) -> Callable[..., Raw]:
    """What ``apply`` of a custom function ends in."""
    call: Callable[..., Raw] = super(_SingleLevelFunction, function).apply
    return call


def _current() -> FunctionReader | None:
    """The reader at work in this thread."""
    modes = (m for m in reversed(_get_current_function_mode_stack()) if isinstance(m, FunctionReader))
    return next(modes, None) or vars(_thread).get("reader")


def _read_backward(backward: Callable[..., Raw]) -> Callable[..., Raw]:
    """A backward pass with the reader at work in every node."""

    def read(*args: Raw, **kwargs: Raw) -> Raw:
        reader = vars(_thread).get("reader")
        if reader is None or reader in _get_current_function_mode_stack():
            return backward(*args, **kwargs)
        with reader.around, reader:
            return backward(*args, **kwargs)

    return read


def _detach_for_checkpoint(detach: Callable[..., Raw]) -> Callable[..., Raw]:
    """Inputs of what a re-entrant checkpoint computes again: its graph begins there, whatever is opened."""

    def detached(*args: Raw) -> Raw:
        with torch._C.DisableTorchFunction():
            return detach(*args)

    return detached


def _run_script(code: Raw, call: Call, args: Sequence[Raw], kwargs: Mapping[str, Raw]) -> Raw:
    reader = _current()
    if reader is None or not (reader.observed is not None or _reached((*args, *kwargs.values()))):
        return call()
    return reader.run_script(code, call, args, kwargs)


@contextmanager
def _eager() -> Iterator[None]:
    """Compiled code runs as it was written, if there is any."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _apply(cls: type[Raw], *args: Raw, **kwargs: Raw) -> Raw:
    call = _original(cls)
    reader = _current()
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


class FunctionReader(SpikeReader):
    """Reads comparisons and custom functions while a gradient is taken.

    ``opens``: the gradient passes the reset inside of functions, too. ``around``: a context of the forward
    pass, and of what the backward pass computes again. ``unread``: names of the functions that give spikes
    whose potential could not be read.
    """

    def __init__(self, surrogates: Surrogates, keep_own: bool = False, opens: bool = False) -> None:
        super().__init__(surrogates, keep_own, opens)
        self.around: AbstractContextManager[object] = nullcontext()
        self.ends: dict[type, tuple[float, float]] = {}
        self.jumps: dict[type, Jumps] = {}
        self.graphs: dict[str, Graph] = {}
        self.resets: dict[object, bool] = {}
        self.in_place: dict[type, bool] = {}

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """While it is open, calls of functions and scripts are met; compiled code runs as written.

        The backward pass is read as well, for what it computes again (checkpoints).
        """
        outer = vars(_thread).get("reader")
        with _meeting.held(), _eager():
            _thread.reader = self
            try:
                yield
            finally:
                _thread.reader = outer

    def run_script(self, code: Raw, call: Call, args: Sequence[Raw], kwargs: Mapping[str, Raw]) -> Raw:
        """What scripted code gives, run where its comparisons are seen."""
        graph = scripts.graph_of(code, self.graphs)
        if scripts.is_known(graph):
            return scripts.run_graph(code, graph, args, kwargs)
        if scripts.compares(graph):
            self.unread.add("scripted code")
        return call()

    def meet(self, function: type[Raw], args: Sequence[Raw], call: Call) -> Raw:
        """The outputs of a custom function, its spikes with their surrogate."""
        if self.observed is not None or not _reached(args):
            return call()
        if self not in _get_current_function_mode_stack():  # a custom operator: its mode handles it
            with self.around, self:
                return self.meet(function, args, call)
        random = torch.get_rng_state()
        args, outputs, seen = self._called(function, args, call)
        each = outputs if isinstance(outputs, tuple) else (outputs,)
        with torch._C.DisableTorchFunction():
            spikes = [o for o in each if isinstance(o, Tensor) and few_values(o)]
            if not spikes or (self.keep_own and any(s.requires_grad for s in spikes)):
                return outputs
            found = self._read(function, args, each[0], seen) if len(each) == 1 else None
        if found is not None:
            return self._hooked(each[0], args, found)
        again = computed_again(self, function, args, each, random)
        if again is not None:
            return again if isinstance(outputs, tuple) else again[0]
        if len(each) > 1:
            self.unread.add(function.__name__)
            return outputs
        with torch._C.DisableTorchFunction():
            found = self._searched(function, args, each[0]) or self._saved(function, args, each[0])
        return outputs if found is None else self._hooked(each[0], args, found)

    def _called(
        self, function: type[Raw], args: Sequence[Raw], call: Call
    ) -> tuple[Sequence[Raw], Raw, list[Reading]]:
        """The arguments as they were before the call, the outputs, and the comparisons inside."""
        copies = args
        if self.in_place.get(function, True):
            with torch._C.DisableTorchFunction():
                copies = [a.clone() if isinstance(a, Tensor) else a for a in args]
        versions = [a._version for a in args if isinstance(a, Tensor)]
        with self.observing() as seen:
            outputs = call()
        written = versions != [a._version for a in args if isinstance(a, Tensor)]
        self.in_place[function] = self.in_place.get(function, False) or written
        return copies if written else args, outputs, seen

    def _read(
        self, function: type[Raw], args: Sequence[Raw], out: Tensor, seen: Sequence[Reading]
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

    def _searched(self, function: type[Raw], args: Sequence[Raw], out: Tensor) -> Potential | None:
        """The potential from where the output jumps."""
        for input in _inputs(args, out):

            def evaluate(values: Tensor, input: Tensor = input) -> Raw:
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

    def _saved(self, function: type[Raw], args: Sequence[Raw], out: Tensor) -> Potential | None:
        """A guess, with a word about it: the first tensor that the function keeps, else straight-through."""
        self.unread.add(function.__name__)
        inputs = _inputs(args, out)
        if not inputs:
            return None
        kept: Sequence[Tensor | None] = getattr(out.grad_fn, "saved_tensors", ())
        u = next((t for t in kept if t is not None and t.is_floating_point() and t.shape == out.shape), None)
        return Potential(
            torch.empty(0, dtype=torch.float32, device="cpu") if u is None else u, inputs[0], 1.0
        )

    def _hooked(self, out: Tensor, args: Sequence[Raw], found: Potential) -> Tensor:
        """The spikes, whose node gives back ``g(u)`` times what it gets."""
        with torch._C.DisableTorchFunction():
            u, tensors = found.u.detach(), [a for a in args if isinstance(a, Tensor)]
            node: object = out.grad_fn
            if not isinstance(node, BackwardCFunction):  # the function gives no gradient at all
                with torch.enable_grad():
                    moved = found.sign * found.input
                    u = moved + (u - moved).detach()
                return spike(u, out, found.height, self.surrogates)
            token = Token()
            if u.numel():
                self.surrogates.owned.append(u)
            setattr(node, "spike_token", token)  # noqa: B010
            at, factor = next(k for k, t in enumerate(tensors) if t is found.input), found.sign * found.height

            def hook(given: Grads, got: Grads) -> Grads | None:
                if got[0] is None:
                    return None
                with torch.no_grad(), torch._C.DisableTorchFunction():
                    g = got[0] * (self.surrogates.derivative(token, u) * factor if u.numel() else 1.0)
                return (*given[:at], g, *given[at + 1 :])

            node.register_hook(hook)
            if self.opens and u.numel() and isinstance(found.height, float):
                self._note_opened(out, found, u)
            return out

    def _note_opened(self, out: Tensor, found: Potential, u: Tensor) -> None:
        """What masks made of these spikes pass on, where the gradient passes what is detached."""
        low = float(out.detach().min())
        if bool((out.detach() > low).any()):
            with torch.enable_grad():
                moved = found.sign * found.input
                self.note(out, Reading(moved + (u - moved).detach(), out > low, low, float(found.height)))


def _reached(args: Sequence[Raw]) -> bool:
    """Does a gradient of the input reach a function with these arguments?"""
    with torch._C.DisableTorchFunction():
        tensors = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
        return torch.is_grad_enabled() and any(t.requires_grad and not t.is_leaf for t in tensors)


def _inputs(args: Sequence[Raw], out: Tensor) -> list[Tensor]:
    """Arguments that could be the potential of spikes ``out``, up to a threshold."""
    return [a for a in args if isinstance(a, Tensor) and a.requires_grad and a.shape == out.shape]


def _moved_by(input: Tensor, args: Sequence[Raw], u: Tensor, height: float) -> Potential | None:
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
