"""Backward pass differentiable approximation: operations that stop or saturate the gradient are bypassed.

While the gradient is taken, ``detach`` and ``no_grad`` do nothing, rounding and clipping are
straight-through, a saturating softmax, tanh or sigmoid is scaled until it no longer saturates, the input
reports that it needs no gradient, and modules that behave differently in eval mode for no statistical reason
(all but batch norm and dropout) are put into training mode. Points are evaluated on the model as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spikeguard.arguments import checked_fields
from spikeguard.gradients.base import Gradient, Opened, derive
from spikeguard.gradients.surrogate import known, replace_derivatives
from spikeguard.losses import Loss
from spikeguard.models import Model
from spikeguard.neurons import Spiking, spiking
from spikeguard.neurons.tap import tap
from spikeguard.surrogates import Surrogate

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


class StraightThroughMode(TorchFunctionMode):
    """The replacements above, for every torch function called inside."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in IDENTITY:
            return args[0]
        # not of later tensors: frameworks use it there to keep what their backward pass needs
        if func == REQUIRES_GRAD and args[0].is_leaf:
            return False
        if func is torch._C._set_grad_enabled:
            return func(True)
        if func in STRAIGHT_THROUGH:
            x = args[0]
            with torch.no_grad():
                moved = func(*args, **kwargs) - x
            return x + moved
        if func in SATURATING:
            with torch.no_grad():
                scale = (args[0].abs().mean() / UNSATURATED).clamp(min=1.0)
            return func(args[0] / scale, *args[1:], **kwargs)
        return func(*args, **kwargs)


@dataclass
class BPDAOpened(Opened):
    """``surrogate``: of all neurons and custom functions; None keeps their own."""

    surrogate: Surrogate | None = None

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> Gradient:
        surrogate = self.surrogate
        with training_mode(self.model):
            if surrogate is None:
                gradient = derive(self._unlocked, x, y, loss)[0]
            elif isinstance(self.model, nn.Module) and known(self.model):
                with tap(self.model, surrogate=surrogate):
                    gradient = derive(self._unlocked, x, y, loss)[0]
            else:
                gradient = derive(
                    self._unlocked, x, y, loss, lambda total: replace_derivatives(total, lambda _: surrogate)
                )[0]
        return self.with_model_loss(gradient, x, y, loss)

    def _unlocked(self, x: Tensor) -> Tensor:
        with StraightThroughMode(), own_neurons_excepted(self.model):
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


@contextmanager
def training_mode(model: Model) -> Iterator[None]:
    """Modules in training mode, but for those whose statistics or draws would change."""
    kept = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, Spiking)
    modules = [m for m in model.modules() if not isinstance(m, kept)] if isinstance(model, nn.Module) else []
    modes = [m.training for m in modules]
    for m in modules:
        m.training = True
    try:
        yield
    finally:
        for m, mode in zip(modules, modes, strict=True):
            m.training = mode


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
