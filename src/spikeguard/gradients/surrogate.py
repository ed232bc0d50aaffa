"""Another derivative in the neurons, the forward pass unchanged to the bit.

In our networks ``tap`` replaces the surrogate. In a network of another framework every spike is a custom
autograd function that keeps its potential ``u`` for the backward pass. A hook on that node of the graph
replaces what it gives back by ``g(u)`` times what it got, whatever the function itself computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from spikeguard.arguments import checked_fields
from spikeguard.gradients.base import Gradient, Opened, derive
from spikeguard.losses import Loss
from spikeguard.models import Model
from spikeguard.neurons import spiking
from spikeguard.neurons.tap import tap
from spikeguard.surrogates import Surrogate

Grads = tuple[Tensor | None, ...]
Choice = Callable[[str], Surrogate]
"""The surrogate of a layer, by the layer's name."""


def known(model: Model) -> bool:
    """Whether the model has spiking neurons of this library."""
    return isinstance(model, nn.Module) and any(
        not layer.dynamics.analog for layer in spiking(model).values()
    )


@dataclass
class SwapOpened(Opened):
    """``choose(layer)`` names the surrogate, anew at every gradient; ``detach_reset`` as in ``tap``."""

    choose: Choice = field(default=lambda name: Surrogate())  # type: ignore[abstract]
    detach_reset: bool | None = None

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> Gradient:
        self.forwards += len(x)
        self.backwards += len(x)
        if not known(self.model):
            return derive(self.model, x, y, loss, lambda total: replace_derivatives(total, self.choose))
        with tap(self.model, surrogate=self.choose, detach_reset=self.detach_reset):  # type: ignore[arg-type]
            return derive(self.model, x, y, loss)


@dataclass(frozen=True)
@checked_fields
class SwapSurrogate:
    """Another surrogate in all neurons. Neftci et al., IEEE Signal Processing Magazine 2019.

    ``detach_reset``: cut (True) or keep (False) the gradient of the reset; None leaves it as it is. In
    networks of other frameworks only the surrogate is replaced.

    >>> sharper = sg.gradients.SwapSurrogate(sg.surrogates.Atan(4.0))
    >>> found = sg.pgd(net, x, y, sg.Linf(8 / 255), steps=2, restarts=1, gradient=sharper)
    >>> found.x.shape == x.shape
    True
    """

    surrogate: Surrogate
    detach_reset: bool | None = None

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        yield SwapOpened(model, choose=lambda name: self.surrogate, detach_reset=self.detach_reset)


def replace_derivatives(total: Tensor, choose: Choice) -> None:
    """Give every custom function in the graph of ``total`` the derivative of ``choose(number)``."""
    for number, node in enumerate(custom_nodes(total.grad_fn)):
        node.register_hook(_replacing(_potential(node), choose(str(number))))


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


def _potential(node: BackwardCFunction) -> Tensor | None:
    saved = (t for t in node.saved_tensors if isinstance(t, Tensor) and t.is_floating_point() and t.dim())
    return next(saved, None)


def _replacing(u: Tensor | None, surrogate: Surrogate) -> Callable[[Grads, Grads], Grads | None]:
    def hook(given: Grads, got: Grads) -> Grads | None:
        g = got[0]
        if g is None or (given[0] is not None and given[0].shape != g.shape):
            return None  # not elementwise, so not a spike
        if u is None or u.shape != g.shape:
            return (g, *given[1:])  # no potential to derive at: straight-through
        with torch.no_grad():
            return (g * surrogate.derivative(u, surrogate.observe(u)), *given[1:])

    return hook
