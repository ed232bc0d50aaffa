"""Custom functions whose spikes are no function of one input alone: computed once more as part of the graph.

For instance a whole sequence of currents in, spikes out. The comparisons inside are met then. Whether the
gradient passes the reset is not seen in a forward pass: that version is taken whose gradient is the
function's own one, once each spike has the slope that the function gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import _is_setup_context_defined

from spikeguard.gradients.jumps import few_values
from spikeguard.gradients.spike import Raw, Surrogates, Token, spike
from spikeguard.surrogates import Atan

if TYPE_CHECKING:
    from spikeguard.gradients.functions import FunctionReader

AGREE = 0.999
"""Cosine of two gradients that count as equal."""


class Context:
    """Stands for the context of a custom function that is computed as part of the graph."""

    saved_tensors: tuple[Tensor, ...] = ()
    needs_input_grad: tuple[bool, ...] = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors

    def ignore(self, *_: object) -> None:
        """What a context is informed of for a backward pass that never comes."""

    save_for_forward = mark_dirty = mark_non_differentiable = set_materialize_grads = ignore


class Slopes(Surrogates):
    """Spikes get given slopes, in the order in which they were computed."""

    def __init__(self, slopes: Sequence[Tensor]) -> None:
        super().__init__(lambda name: Atan())
        self.slopes, self.places = list(slopes), dict[Token, int]()

    def made(self, token: Token, u: Tensor, own: bool) -> None:
        super().made(token, u, own)
        self.places[token] = len(self.places)

    def derivative(self, token: Token, u: Tensor) -> Tensor:
        return self.slopes[self.places[token]].view_as(u)


def computed_again(
    reader: FunctionReader,
    function: type[Raw],
    args: Sequence[Raw],
    outputs: Sequence[Raw],
    random: Tensor,
) -> tuple[Raw, ...] | None:
    """The function's outputs as part of the graph, in float equality; None if that fails."""
    if reader.opens:
        return _version(reader, function, args, outputs, random, True)
    key = (function, repr([a for a in args if not isinstance(a, Tensor)]))
    if key not in reader.resets:
        reader.resets[key] = _passes_reset(reader, function, args, outputs, random)
    return _version(reader, function, args, outputs, random, reader.resets[key])


def _passes_reset(
    reader: FunctionReader,
    function: type[Raw],
    args: Sequence[Raw],
    outputs: Sequence[Raw],
    random: Tensor,
) -> bool:
    """Does the function's own gradient pass what its spikes do to later potentials?"""
    inputs = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
    real = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
    if not real:
        return True
    surrogates = reader.surrogates
    try:
        generator = torch.Generator("cpu").manual_seed(0)
        weights = [
            torch.rand(o.shape, dtype=torch.float32, generator=generator, device="cpu").to(o) for o in real
        ]
        own = _flat(torch.autograd.grad(real, inputs, weights, retain_graph=True, allow_unused=True))
        slopes = _own_slopes(reader, function, args, outputs, random)
        if slopes is None:
            return True
        closeness = {}
        for passes in (True, False):
            reader.surrogates = given = Slopes(slopes)
            version = _version(reader, function, args, outputs, random, passes)
            if version is None or len(given.places) != len(slopes):  # spikes of levels that are clipped
                return True
            same = [v for v, o in zip(version, outputs, strict=True) if any(o is r for r in real)]
            pairs = [(v, w) for v, w in zip(same, weights, strict=True) if v.requires_grad]
            got = torch.autograd.grad(
                [v for v, _ in pairs], inputs, [w for _, w in pairs], allow_unused=True, retain_graph=True
            )
            closeness[passes] = float(torch.nn.functional.cosine_similarity(own, _flat(got), 0))
    except RuntimeError:  # its backward pass takes no other gradients than the one to come
        return True
    finally:
        reader.surrogates = surrogates
    return closeness[True] >= closeness[False]


def _own_slopes(
    reader: FunctionReader,
    function: type[Raw],
    args: Sequence[Raw],
    outputs: Sequence[Raw],
    random: Tensor,
) -> list[Tensor] | None:
    """The slope that the function's own backward pass gives each of its spikes, in their order."""
    with reader.without_spikes() as fired:
        _run(function, args, random)
    out = next(o for o in outputs if isinstance(o, Tensor) and few_values(o))
    place = _places(out, [value for _, value in fired])
    inputs = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
    if place is None or not inputs:
        return None
    slopes = []
    for step, (reading, _) in enumerate(fired):
        chosen = torch.zeros_like(out)
        chosen[place(step)] = 1.0
        (own,) = torch.autograd.grad(out, inputs[:1], chosen, retain_graph=True)
        (moved,) = torch.autograd.grad(reading.u.sum(), inputs[:1], retain_graph=True)
        at = place(step) if own.shape == out.shape else slice(None)
        slopes.append((own[at] / torch.where(moved[at] == 0, 1.0, moved[at])).detach())
    return slopes


def _places(out: Tensor, values: Sequence[Tensor]) -> Raw:
    """Where in ``out`` the spikes of each step lie: a function of the step, or None."""
    if len(values) == 1 and _equal(out, values[0]):
        return lambda step: (...,)
    for dim in range(out.dim()):
        if out.shape[dim] == len(values) and all(
            _equal(out.select(dim, k), value) for k, value in enumerate(values)
        ):
            return lambda step, dim=dim: (*[slice(None)] * dim, step)
    return None


def _version(
    reader: FunctionReader,
    function: type[Raw],
    args: Sequence[Raw],
    outputs: Sequence[Raw],
    random: Tensor,
    passes_reset: bool,
) -> tuple[Raw, ...] | None:
    computed, inside = reader.surrogates.computed, reader.inside
    reader.inside = True
    try:
        if passes_reset:
            with reader.below_autograd():
                again = _run(function, args, random)
        else:
            with reader.without_spikes() as fired:
                again = _run(function, args, random)
            again = _spikes_put_in(reader, again, fired)
    except Exception:  # whatever its code needs a real context or no graph for
        return None
    finally:
        reader.inside = inside
    with torch._C.DisableTorchFunction():
        pairs = list(zip(again, outputs, strict=False))
        same = len(again) == len(outputs) and all(_equal(a, b) for a, b in pairs)
        reached = any(isinstance(a, Tensor) and a.requires_grad and few_values(b) for a, b in pairs)
        spiking = reader.surrogates.computed > computed
        return again if same and reached and spiking else None


def _spikes_put_in(reader: FunctionReader, outputs: Sequence[Raw], fired: Sequence[Raw]) -> tuple[Raw, ...]:
    """The outputs with spikes in place of their values."""
    placed = []
    with torch._C.DisableTorchFunction():
        for out in outputs:
            place = (
                _places(out, [v for _, v in fired]) if isinstance(out, Tensor) and few_values(out) else None
            )
            if place is None:
                placed.append(out)
                continue
            spikes = [spike(reading.u, value, reading.height, reader.surrogates) for reading, value in fired]
            dim = len(place(0)) - 1
            placed.append(spikes[0] if place(0) == (...,) else torch.stack(spikes, dim))
    return tuple(placed)


def _run(function: type[Raw], args: Sequence[Raw], random: Tensor) -> tuple[Raw, ...]:
    """The function's forward pass as part of the graph, with the random numbers of the first time."""
    before = torch.get_rng_state()
    torch.set_rng_state(random)
    try:
        with torch.enable_grad():
            copies = [a.clone() if isinstance(a, Tensor) else a for a in args]
            bound = () if _is_setup_context_defined(function.setup_context) else (Context(),)
            again = function.forward(*bound, *copies)
    finally:
        torch.set_rng_state(before)
    return again if isinstance(again, tuple) else (again,)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a.detach(), b.detach())
    return type(a) is type(b)


def _flat(gradients: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([g.detach().flatten() for g in gradients if g is not None])
