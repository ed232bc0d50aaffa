"""A layer of neurons of any framework, as taps see it.

Seam ``fire``: the framework's own code calls what turns a potential into spikes; there ``u`` is read, noise
added, the derivative replaced. Seam ``sequence``: where one call of the layer computes a whole sequence,
``charge`` names its currents, so that the whole backward pass can be replaced.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikeguard.adapters.run import Fire, Run, in_band
from spikeguard.kernels.comparator import compared
from spikeguard.kernels.custom_backward import custom_backward
from spikeguard.kernels.mode import widen
from spikeguard.neurons.request import TapRequest, active, merge, recomputing
from spikeguard.surrogates import Atan

Raw = Any
"""Arguments and outputs of foreign modules."""
Step = Callable[[Tensor], Tensor]
"""From the distance to the threshold to spikes."""
MEMBRANE = "noise of site 'membrane' would have to enter the potential itself, which is the framework's"
OUTSIDE = (
    "currents, relu and another backward pass need a layer that computes whole sequences; this one is "
    "stepped from outside"
)
CHARGE = "currents, relu and another backward pass need neurons that sum their input with one decay"


@dataclass(frozen=True)
class Charge:
    """What neurons of one decay integrate: currents ``[T, N, ...]`` with a graph, decay and threshold."""

    current: Tensor
    decay: float
    threshold: float


class Layer:
    """One layer of neurons: where taps read and change it, how its state is reset.

    ``framework``: where it comes from. ``refused``: why no tap can work with it, or "".

    >>> (layer,) = sg.adapters.layers(sg.LIF(threshold=0.5)).values()
    >>> layer.kind, layer.whole, float(layer.threshold)
    ('spikeguard LIF', True, 0.5)
    """

    framework = ""
    at_once = False
    """Does it fire for all steps of a sequence in one call?"""

    def __init__(self, module: nn.Module, refused: str = "") -> None:
        self.module, self.refused = module, refused
        self.requests: list[TapRequest] = []
        self._before: dict[str, Raw] = {}
        self._state = threading.local()

    @property
    def kind(self) -> str:
        """The class of its neurons, with the framework."""
        return f"{self.framework} {type(self.module).__name__}".strip()

    @property
    def names(self) -> set[str]:
        """The names of the module's class and of those that it derives from."""
        return {c.__name__ for c in type(self.module).__mro__}

    @property
    def threshold(self) -> Tensor | float:
        """The potential at which its neurons fire."""
        raise NotImplementedError

    @property
    def whole(self) -> bool:
        """Does one call compute a whole sequence? Else it is stepped from outside."""
        return False

    def reset(self) -> None:
        """Forget the state of the neurons: the next step is the first one."""

    def charge(self, *args: Raw, **kwargs: Raw) -> Charge | None:
        """What the neurons integrate in a call of a whole sequence; None if they have no single decay."""
        return None

    @property
    def sums(self) -> bool:
        """Can ``charge`` name the currents?"""
        return False

    def fresh(self, *args: Raw, **kwargs: Raw) -> bool:
        """Does a call with these arguments start from a reset state?"""
        raise NotImplementedError

    def seams(self) -> Mapping[str, Raw]:
        """Attributes of the module, and what stands in their place while a tap is open."""
        raise NotImplementedError

    def body(self) -> Raw:
        """What computes a call of a tapped layer: the module's own forward, which meets the seams."""
        return self.own("forward")

    @contextmanager
    def around(self, request: TapRequest) -> Iterator[None]:
        """A context of every call of a tapped layer."""
        yield

    def after(self) -> None:
        """Called after every call of a tapped layer."""

    def time_first(self, spikes: Tensor) -> Tensor:
        """Spikes as the layer's output holds them, as ``[T, N, ...]``."""
        return spikes

    def as_output(self, spikes: Tensor) -> Tensor:
        """``[T, N, ...]`` as the layer's output holds spikes."""
        return spikes

    def shaped(self, u: Tensor) -> Tensor:
        """Potentials as the seam gets them, as ``[N, ...]``, or ``[T, N, ...]`` if all steps come at once."""
        return u

    def refuses(self, request: TapRequest) -> str:
        """Why this layer cannot do what a tap requests, or ""."""
        if self.refused:
            return self.refused
        if request.noise is not None and request.noise.site == "membrane":
            return MEMBRANE
        if request.relu or request.backward is not None or request.on_current is not None:
            return OUTSIDE if not self.whole else "" if self.sums else CHARGE
        return ""

    # taps

    def open(self, request: TapRequest) -> None:
        """Begin to do what a tap requests."""
        if not self.requests:
            own = vars(self.module)
            seams = {**self.seams(), "forward": self._forward}
            self._before = {name: getattr(self.module, name) for name in seams}
            self._held = {name: own[name] for name in seams if name in own}
            own.update(seams)
        self.requests.append(request)

    def close(self, request: TapRequest) -> None:
        """Stop it; the last one leaves the module as it was before the first."""
        self.requests = [r for r in self.requests if r is not request]
        if not self.requests:
            own = vars(self.module)
            for name in self._before:
                own.pop(name, None)
            own.update(self._held)
            self._before, self._held = {}, {}

    def own(self, name: str) -> Raw:
        """The module's own attribute, in whose place a seam may stand."""
        return self._before[name] if name in self._before else getattr(self.module, name)

    def restart(self) -> None:
        """The next step is the first of another recording."""
        self._state.run = None

    def begin_pass(self) -> None:
        """A pass of the model begins: if the last one had several steps, this one is another recording."""
        if vars(self._state).get("steps", 0) > 1:
            self._state.run = None
        self._state.steps = 0

    def __deepcopy__(self, memo: dict[int, Raw]) -> Layer:
        twin = type(self)(copy.deepcopy(self.module, memo), self.refused)
        memo[id(self)] = twin
        twin._before = {name: copy.deepcopy(value, memo) for name, value in self._before.items()}
        return twin

    # the seams

    def fire(self, u: Tensor, own: Step, h: Tensor | None = None) -> Tensor:
        """Spikes of the distance ``u`` to the threshold, as the open taps want them.

        ``own(h)``: the framework's own spikes; ``h`` is ``u`` unless it compares something else.
        """
        requests, h = active(self.requests), u if h is None else h
        if not requests:
            return own(h)
        request, run = merge(requests), self.run
        self._read(u, request, run)
        noise = run.noise
        only_h = h is not u and request.surrogate is None and not request.smooth
        w, penalty = compared(u, None if only_h else noise, request.band)
        h = w if h is u else h if noise is None else h + noise
        if request.on_penalty is not None and penalty is not None and not recomputing():
            request.on_penalty(penalty, None if self.at_once else run)
        spikes = self.spikes(w, h, own, request)
        if request.on_spikes is not None and not recomputing():
            request.on_spikes(self.shaped(spikes), None if self.at_once else run)
        run.step += len(self.shaped(u)) if self.at_once else 1
        return spikes if penalty is None or request.carry is None else request.carry(penalty, spikes)

    def spikes(self, w: Tensor, h: Tensor, own: Step, request: TapRequest) -> Tensor:
        """Spikes of the comparator's input ``w``, by a soft step, the own one or another derivative."""
        if request.smooth:
            return (request.surrogate or Atan()).soft_step(w)
        if request.surrogate is None:
            return own(h)
        trail = self.run.trail(request.surrogate, self.at_once)
        if trail is not None:
            trail.steps.append(self.shaped(w.detach()))
        with torch.no_grad():
            value = own(h.detach())
        spikes: Tensor = Fire.apply(w, value, request.surrogate, trail)  # type: ignore[no-untyped-call]
        return spikes

    def again(self, u: Tensor, own: Step) -> Tensor:
        """The spikes of the last step once more, for frameworks that compare a second time to reset."""
        requests = active(self.requests)
        if not requests:
            return own(u)
        noise = self.run.noise
        w = u if noise is None or noise.shape != u.shape else u + noise
        return self.spikes(w, w, own, merge(requests))

    @property
    def run(self) -> Run:
        """The recording that is under way in this thread."""
        found: Run | None = vars(self._state).get("run")
        if found is None:
            found = self._state.run = Run()
        return found

    def _read(self, u: Tensor, request: TapRequest, run: Run) -> None:
        """Notify the taps of ``u``, and draw the noise of this step."""
        seen = self.shaped(u)
        if request.on_potentials is not None and not recomputing():
            request.on_potentials(seen, None if self.at_once else run)
        if run.u is not None:
            run.u.append(seen.detach())
        run.noise, noise = None, request.noise
        if noise is not None and noise.sigma > 0:
            drawn = run.draw(seen, noise, request.source, self.at_once)
            run.noise = in_band(seen, drawn, noise).view(u.shape).to(u.dtype)
        if request.push is not None:
            push = request.push()
            push = (push if self.at_once else push[run.step]).view(u.shape).to(u.dtype)
            run.noise = push if run.noise is None else run.noise + push

    def _forward(self, *args: Raw, **kwargs: Raw) -> Raw:
        """What stands in place of the module's forward; compiled models run a tapped layer as written."""
        requests = active(self.requests)
        if not requests:
            return self.own("forward")(*args, **kwargs)
        run = torch.compiler.disable(self._tapped) if "torch._dynamo" in sys.modules else self._tapped
        return run(requests, args, kwargs)

    def _tapped(self, requests: Sequence[TapRequest], args: tuple[Raw, ...], kwargs: dict[str, Raw]) -> Raw:
        """One call of the layer, as the open taps want it."""
        request, state = merge(requests), vars(self._state)
        rule = self.whole and (request.relu or request.backward is not None)
        if self.whole or state.get("run") is None or self.fresh(*args, **kwargs):
            last: Run | None = state.get("run")
            self._state.run = Run(last.keys if last is not None and recomputing() else None, rule)
        self._state.steps = state.get("steps", 0) + 1
        if request.on_current is not None and (charge := self.charge(*args, **kwargs)) is not None:
            request.on_current(charge.current)
        with self.around(request):
            out = self._ruled(request, args, kwargs) if rule else self.body()(*args, **kwargs)
        self.after()
        return out

    def _ruled(self, request: TapRequest, args: tuple[Raw, ...], kwargs: dict[str, Raw]) -> Raw:
        """The output of a whole sequence with another backward pass, or with rates in place of spikes."""
        charge = self.charge(*args, **kwargs)
        assert charge is not None, "refuses() lets no such layer pass"
        with torch.no_grad():
            out = self.body()(*args, **kwargs)
        first, *rest = out if isinstance(out, tuple) else (out,)
        if request.relu:
            spikes = torch.relu(charge.current) / charge.threshold
        else:
            assert request.backward is not None
            assert self.run.u is not None
            u = self.run.u[0] if self.at_once else torch.stack(self.run.u)
            spikes = custom_backward(
                charge.current,
                self.time_first(first),
                widen(u),
                charge.decay,
                charge.threshold,
                request.backward,
            )
        made = self.as_output(spikes.to(first.dtype))
        return type(out)((made, *rest)) if type(out) is tuple else made
