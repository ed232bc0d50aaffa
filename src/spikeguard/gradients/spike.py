"""Spikes of foreign networks whose potential is known: what is read, and the node that has a surrogate.

A spike is ``low + height step(u)``; ``u`` is the distance to the threshold, as part of the autograd graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from spikeguard.kernels.context import Context
from spikeguard.surrogates import Surrogate

Raw = Any
"""What a user's function takes and returns: this code passes it on, and cannot know its type."""
CLOSE = 1e-5
Choice = Callable[[str], Surrogate]
"""The surrogate of a layer, by the layer's name."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What is known of a tensor that holds spikes, or is on the way to them.

    ``value``: the spikes ``low + height mask``, without a graph. ``complete``: the tensor's values are
    spikes; else a sum that may become spikes once its last term is added, as in straight-through
    expressions. ``soft``: the first term added; ``moved``: it is not 0.
    """

    u: Tensor
    mask: Tensor
    low: float = 0.0
    height: float = 1.0
    complete: bool = True
    soft: Tensor | None = None
    moved: bool = False

    @property
    def value(self) -> Tensor:
        return self.low + self.height * self.mask.to(self.u.dtype)

    def turned(self) -> Reading:
        """The reading of the negated mask."""
        return replace(self, u=-self.u, mask=~self.mask)


class Token:
    """Stands for one spike of one gradient; ``name``: its number in the order of the graph."""

    name: str | None = None


class Surrogates:
    """Which surrogate each spike gets: ``choose`` is called once a spike, in the order of the graph.

    Spikes that are computed again in the backward pass (checkpointing) are numbered as they come. A layer may
    compare its potential a second time, to reset it: where the spikes have a gradient of their own and that
    comparison has none, its outcome counts as detached. ``opens``: nothing does.
    """

    def __init__(self, choose: Choice, opens: bool = False) -> None:
        self.choose, self.opens, self.count, self.computed = choose, opens, 0, 0
        self.chosen: dict[Token, Surrogate] = {}
        self.owned: list[Tensor] = []
        self.bare: list[tuple[Token, Tensor]] = []
        self.detached: set[Token] = set()

    def number(self, total: Tensor) -> None:
        """Number the custom functions in the graph of ``total``."""
        self._find_detached()
        for node in custom_nodes(total.grad_fn):
            token = getattr(node, "spike_token", None) or Token()
            if token not in self.detached:
                self._next(token)

    def _find_detached(self) -> None:
        if self.opens or not self.bare:
            return
        owned = [(_size(u), u) for u in self.owned]
        for token, u in self.bare:
            size = _size(u)
            if any(abs(size - s) <= CLOSE * size and _same_distance(u, o) for s, o in owned):
                self.detached.add(token)

    def made(self, token: Token, u: Tensor, own: bool) -> None:
        """Count a spike that was computed; ``own``: the network's own gradient passes it."""
        self.computed += 1
        if own:
            self.owned.append(u.detach())
        else:
            self.bare.append((token, u.detach()))

    def derivative(self, token: Token, u: Tensor) -> Tensor:
        """g(u) of the spike's surrogate, which observes ``u`` first."""
        if token in self.detached:
            return torch.zeros_like(u)
        surrogate = self.chosen.get(token) or self._next(token)
        return surrogate.derivative(u, surrogate.observe(u))

    def _next(self, token: Token) -> Surrogate:
        surrogate = self.chosen[token] = self.choose(str(self.count))
        self.count += 1
        return surrogate


def _size(u: Tensor) -> float:
    return float(u.abs().double().sum())


def _same_distance(a: Tensor, b: Tensor) -> bool:
    """Are two potentials equal, perhaps with the other sign?"""
    return a.shape == b.shape and (torch.allclose(a, b, 1e-4, CLOSE) or torch.allclose(a, -b, 1e-4, CLOSE))


class _Kept(Context, Protocol):
    saved_tensors: tuple[Tensor]
    height: float | Tensor
    surrogates: Surrogates
    spike_token: Token


class Spike(torch.autograd.Function):
    """``value`` forward; backward ``height g(u)`` into ``u``."""

    @staticmethod
    def forward(
        ctx: _Kept, u: Tensor, value: Tensor, height: float | Tensor, surrogates: Surrogates, own: bool
    ) -> Tensor:
        ctx.save_for_backward(u)
        ctx.height, ctx.surrogates, ctx.spike_token = height, surrogates, Token()
        surrogates.made(ctx.spike_token, u, own)
        return value.clone()

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (u,) = ctx.saved_tensors
        slope = ctx.surrogates.derivative(ctx.spike_token, u)
        return grads[0] * slope * ctx.height, None, None, None, None


def spike(
    u: Tensor, value: Tensor, height: float | Tensor, surrogates: Surrogates, own: bool = True
) -> Tensor:
    """``value`` as spikes of the potential ``u``; ``own``: the network's own gradient passes them."""
    spikes: Tensor = Spike.apply(u, value.detach(), height, surrogates, own)  # type: ignore[no-untyped-call]
    return spikes


def custom_nodes(root: Node | None) -> list[BackwardCFunction]:
    """The custom functions of an autograd graph, always in the same order."""
    seen: set[Node | BackwardCFunction | None] = {root}
    stack: list[Node | BackwardCFunction] = [] if root is None else [root]
    found: list[BackwardCFunction] = []
    while stack:
        node = stack.pop()
        if isinstance(node, BackwardCFunction):
            found.append(node)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return found
