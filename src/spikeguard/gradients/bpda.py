"""Backward pass differentiable approximation: operations that stop or saturate the gradient are bypassed.

While the gradient is taken, ``detach`` and ``no_grad`` do nothing on the way from input to output, rounding
and clipping are straight-through, a saturating softmax, tanh or sigmoid is scaled until it no longer
saturates, spikes without a gradient get a surrogate, and the input reports that it needs no gradient. The
model stays in the mode it is in, its parameters and buffers are left alone. Points are evaluated on the model
as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spikeguard.adapters.tap import tap
from spikeguard.arguments import checked_fields
from spikeguard.gradients.base import Gradient, Opened, as_module, derive
from spikeguard.gradients.surrogate import derive_replaced, known
from spikeguard.losses import Loss
from spikeguard.models import Model
from spikeguard.neurons import spiking
from spikeguard.surrogates import Atan, Surrogate

STRAIGHT_THROUGH = {
    torch.round,
    Tensor.round,
    torch.floor,
    Tensor.floor,
    torch.ceil,
    Tensor.ceil,
    torch.trunc,
    Tensor.trunc,
    torch.sign,
    Tensor.sign,
    torch.clamp,
    Tensor.clamp,
    torch.clip,
    Tensor.clip,
    nn.functional.hardtanh,
}
SATURATING = {
    torch.softmax,
    Tensor.softmax,
    nn.functional.softmax,
    torch.tanh,
    Tensor.tanh,
    torch.sigmoid,
    Tensor.sigmoid,
}
IDENTITY = {torch.detach, Tensor.detach, Tensor.data.__get__}  # type: ignore[attr-defined]
REQUIRES_GRAD = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
UNSATURATED = 3.0  # mean absolute argument of a saturating function that leaves a gradient
NO_GRADIENT = Atan()
"""The surrogate of spikes that have no gradient of their own, if no other one is wanted."""


class StraightThroughMode(TorchFunctionMode):
    """The replacements above, for every torch function called inside. ``x``: the input of the model."""

    def __init__(self, model: Model, x: Tensor) -> None:
        super().__init__()
        self.x, self.grad_wanted = x, True
        held = (*model.parameters(), *model.buffers()) if isinstance(model, nn.Module) else ()
        self.held = {id(t) for t in held}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in IDENTITY:
            return args[0] if args[0] is self.x or _in_graph(args[0]) else func(*args, **kwargs)
        # not of other tensors: frameworks use it there to keep what their backward pass needs
        if func == REQUIRES_GRAD and args[0] is self.x:
            return False
        if func is torch._C._set_grad_enabled:
            self.grad_wanted = bool(args[0])
            return func(self.grad_wanted or torch.is_grad_enabled())
        if not self.grad_wanted and self._writes(func, args, kwargs):
            with torch.no_grad():
                return func(*args, **kwargs)
        if func in STRAIGHT_THROUGH:
            x = args[0]
            with torch.no_grad():
                moved = func(*args, **kwargs) - x
            return x + moved
        if func in SATURATING and torch.is_grad_enabled():
            with torch.no_grad():
                scale = (args[0].abs().mean() / UNSATURATED).clamp(min=1.0)
            return func(args[0] / scale, *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _writes(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, object]) -> bool:
        """Does a call write into a given tensor, or one that the model holds, as its own updates do?"""
        if "out" in kwargs:
            return True
        writes = getattr(func, "__name__", "").endswith("_") and bool(args)
        return writes and (id(args[0]) in self.held or (args[0].is_leaf and args[0].requires_grad))


def _in_graph(tensor: Tensor) -> bool:
    """Did a recorded operation give this tensor, also one that is mapped over (torch.vmap)?"""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.grad_fn is not None


@dataclass
class BPDAOpened(Opened):
    """``surrogate``: of all neurons and custom functions; None keeps their own."""

    surrogate: Surrogate | None = None

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> Gradient:
        surrogate = self.surrogate
        if known(self.model):
            tapped = (
                nullcontext()
                if surrogate is None
                else tap(as_module(self.model, "BPDA"), surrogate=surrogate)
            )
            with tapped:
                gradient = derive(self._opened, x, y, loss)[0]
        else:
            choose = NO_GRADIENT if surrogate is None else surrogate
            gradient = derive_replaced(
                self.model,
                x,
                y,
                loss,
                lambda _: choose,
                keep_own=surrogate is None,
                around=lambda images: StraightThroughMode(self.model, images),
            )[0]
        return self.with_model_loss(gradient, x, y, loss)

    def _opened(self, x: Tensor) -> Tensor:
        with StraightThroughMode(self.model, x), own_neurons_excepted(self.model):
            return self.model(x)


@contextmanager
def own_neurons_excepted(model: Model) -> Iterator[None]:
    """Our own neurons run outside the mode: they need no bypass, and their kernels would not run under it."""
    layers = spiking(model).values() if isinstance(model, nn.Module) else ()
    open_guards: list[AbstractContextManager[object]] = []

    def enter(*_: object) -> None:
        open_guards.append(torch._C.DisableTorchFunction())
        open_guards[-1].__enter__()

    def leave(*_: object) -> None:
        open_guards.pop().__exit__(None, None, None)

    handles = [layer.register_forward_pre_hook(enter) for layer in layers]
    handles += [layer.register_forward_hook(leave, always_call=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
@checked_fields
class BPDA:
    """Backward pass differentiable approximation. Athalye et al., ICML 2018.

    Gradients as if nothing detached, rounded, clipped or saturated on the way. ``surrogate`` also replaces
    the derivative of all neurons and custom functions, as ``SwapSurrogate`` does.

    >>> rounded = lambda images: net((images * 7).round() / 7)
    >>> found = sg.pgd(rounded, x, y, sg.Linf(0.1), steps=2, restarts=1, gradient=sg.gradients.BPDA())
    >>> found.x.shape == x.shape
    True
    """

    surrogate: Surrogate | None = None

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        """As of ``Estimator``."""
        yield BPDAOpened(model, surrogate=self.surrogate)
