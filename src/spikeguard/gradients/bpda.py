"""A model's gradient with its locks off: what detaches, rounds, clips or saturates on the way is stepped over
in the backward pass.

While the gradient is taken, ``detach`` and ``no_grad`` do nothing, rounding and clipping pass gradients
straight through, a saturating softmax, tanh or sigmoid is stretched until it no longer saturates, the input
says that it needs no gradient, and modules that behave differently in eval mode for no statistical reason
(all but batch norm and dropout) are put into training mode. Points are judged on the model as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spikeguard.gradients.base import Opened, derive
from spikeguard.gradients.surrogate import known, rewire
from spikeguard.losses import Loss
from spikeguard.models import Model
from spikeguard.neurons import Spiking, spiking
from spikeguard.neurons.tap import tap
from spikeguard.surrogates import Surrogate

PASSED = {
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
}
CLIPS = {torch.clamp, Tensor.clamp, torch.clip, Tensor.clip, nn.functional.hardtanh}
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
ASKED = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
MILD = 3.0


class _SeeThrough(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in IDENTITY:
            return args[0]
        if (
            func == ASKED and args[0].is_leaf
        ):  # of later tensors frameworks ask it in good faith, to keep what their backward pass needs
            return False
        if func is torch._C._set_grad_enabled:
            return func(True)
        if func in PASSED or func in CLIPS:
            x = args[0]
            with torch.no_grad():
                moved = func(*args, **kwargs) - x
            return x + moved
        if func in SATURATING:
            with torch.no_grad():
                scale = (args[0].abs().mean() / MILD).clamp(min=1.0)
            return func(args[0] / scale, *args[1:], **kwargs)
        return func(*args, **kwargs)


@dataclass
class _Unlocked(Opened):
    surrogate: Surrogate | None = None

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        def open_model(x: Tensor) -> Tensor:
            with _SeeThrough(), _neurons_as_they_are(self.model):
                return self.model(x)

        spikes = self.surrogate
        with _awake(self.model):
            if spikes is not None and isinstance(self.model, nn.Module) and known(self.model):
                with tap(self.model, surrogate=spikes):
                    gradient = derive(open_model, x, y, loss)[0]
            else:
                gradient = derive(
                    open_model,
                    x,
                    y,
                    loss,
                    None if spikes is None else lambda total: rewire(total, lambda name: spikes),
                )[0]
        return self.judged(gradient, x, y, loss)


@contextmanager
def _neurons_as_they_are(model: Model) -> Iterator[None]:
    """Our own neurons have no locks, and kernels that would not run under the mode: they do not see it."""
    layers = spiking(model).values() if isinstance(model, nn.Module) else ()
    open_guards: list[Any] = []

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
def _awake(model: Model) -> Iterator[None]:
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
class BPDA:
    """Estimator as above.

    ``surrogate`` also replaces the derivative of every custom function, as ``swap`` does.
    """

    surrogate: Surrogate | None = None

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        yield _Unlocked(model, surrogate=self.surrogate)
