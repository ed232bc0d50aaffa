"""``guard``: Threshold Guarding Optimization in a training loop of the user's own.

The constants, the constraint and the schedule are those of ``TGO``. The layers' penalties are collected
while the network trains; ``penalty`` sums them up. A pass that torch will compute again in the backward pass
without keeping its graph (a re-entrant checkpoint) has no penalty that could be differentiated: there the
repetition carries the gradient, see ``_Carried``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Literal, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from spikeguard import adapters
from spikeguard.adapters.tap import Changes, Tap
from spikeguard.arguments import checked
from spikeguard.defenses.tgo import TGO, constraint
from spikeguard.errors import UserError
from spikeguard.neurons import Band, Noise
from spikeguard.neurons.request import recomputing
from spikeguard.runtime.measuring import is_measuring

_guarded = WeakSet[nn.Module]()
"""Layers of networks whose guard is open."""


class Passes:
    """The penalties of the forward passes since the last ``penalty``, by layer.

    ``repeated``: whether some of them have no graph; ``upstream``: what the loss's derivative with respect to
    such a layer's mean is, known once the backward pass has begun.
    """

    def __init__(self) -> None:
        self.terms: dict[str, list[Tensor]] = {}
        self.repeated = False
        self.weight = 0.0
        self.upstream: Tensor | None = None

    def add(self, name: str, penalty: Tensor) -> None:
        """One call of a layer."""
        self.repeated |= not torch.is_grad_enabled()
        self.terms.setdefault(name, []).append(penalty)

    def share(self, name: str) -> float:
        """Derivative of the weighed constraint with respect to one call of a layer."""
        return self.weight / len(self.terms[name])


class Guard:
    """Threshold Guarding Optimization for one training loop, as ``sg.guard`` returns it; a context manager.

    Inside, neurons that train are noisy and penalized. ``weight`` is lambda at this step.
    """

    def __init__(self, model: nn.Module, settings: TGO, total_steps: int, steps_done: int) -> None:
        self.settings, self.total_steps, self.steps_done = settings, total_steps, steps_done
        noise = Noise(settings.sigma, at_eval=settings.noise_at_eval) if settings.sigma else None
        if not adapters.layers(model):
            raise UserError(
                f"guard: {type(model).__name__} has no neurons that spikeguard knows; sg.tap says which "
                "ones it does"
            )
        changes = Changes(
            noise,
            free=True,
            band=Band(settings.delta, settings.side),
            carry=self._carry,
            when=None if settings.noise_at_eval else _trains,
        )
        self._tap = Tap(model, changes, None, potentials=False, currents=False, grad=False)
        self._passes, self._delivering = Passes(), Passes()
        self._open, self._paused = False, 0

    @property
    def weight(self) -> float:
        """Lambda at this step: from 0 to ``lambda_max`` by cosine over ``total_steps``."""
        return self.settings.weight(self.steps_done / self.total_steps)

    def penalty(self) -> Tensor:
        """Lambda times the constraint, a scalar to be added to the loss.

        It covers the forward passes in training mode since the last call: the mean of each layer's calls,
        summed over layers. UserError if there was none.
        """
        self._need_open("penalty()")
        passes, self._passes = self._passes, Passes()
        if not passes.terms:
            raise UserError(
                "guard: penalty() without a forward pass since the last call: call model(x) in training mode "
                "before, outside of paused(), with gradients enabled"
            )
        passes.weight = self.weight
        total = passes.weight * constraint(passes.terms)
        if not passes.repeated:
            return total
        self._delivering = passes
        start = torch.zeros((), dtype=total.dtype, device=total.device, requires_grad=True)
        delivered: Tensor = _Delivered.apply(total, start, passes)  # type: ignore[no-untyped-call]
        return delivered

    def step(self) -> None:
        """Count one step of the optimizer; lambda follows. UserError beyond ``total_steps``."""
        self._need_open("step()")
        if self.steps_done >= self.total_steps:
            raise UserError(
                f"guard: step() after all total_steps = {self.total_steps} are done: pass the number of "
                "optimizer steps of the whole training"
            )
        if self._passes.terms:
            raise UserError(
                "guard: step() after forward passes that no penalty() covers: add g.penalty() to their loss, "
                "or run them inside g.paused()"
            )
        self.steps_done += 1

    def clear(self) -> None:
        """Forget the forward passes since the last ``penalty``, such as those of a batch that failed."""
        self._passes = Passes()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, ``penalty`` counts no forward pass; neurons that train stay noisy."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def __enter__(self) -> Self:
        layers = self._tap.modules()
        if any(layer in _guarded for layer in layers):
            raise UserError("guard: the model has an open guard already: close that one first")
        _guarded.update(layers)
        self._tap.__enter__()
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        self._passes = Passes()
        self._tap.__exit__(kind, error, trace)
        _guarded.difference_update(self._tap.modules())

    def _need_open(self, what: str) -> None:
        if not self._open:
            raise UserError(f"guard: {what} of a closed guard: call it inside `with sg.guard(...) as g`")

    def _carry(self, name: str, layer: nn.Module, penalty: Tensor, spikes: Tensor) -> Tensor:
        """Keep the penalty of a pass that counts; in a repetition of such a pass let the spikes carry it."""
        if not layer.training or self._paused or is_measuring():
            return spikes
        if recomputing():
            if self._delivering.repeated and name in self._delivering.terms:
                carried: Tensor = _Carried.apply(spikes, penalty, name, self._delivering)  # type: ignore[no-untyped-call]
                return carried
            return spikes
        if torch.is_grad_enabled() or _is_checkpointed():
            self._passes.add(name, penalty)
        return spikes


def _trains(layer: nn.Module) -> bool:
    return layer.training


def _is_checkpointed() -> bool:
    """Whether gradients are off because a re-entrant checkpoint makes its first pass."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back
    return frame is not None


Raw = Any
"""The context that torch hands to functions."""


class _Delivered(torch.autograd.Function):
    """The penalty; the backward pass notes what the loss's derivative with respect to it is.

    It is younger than the forward passes that the penalty covers, and so comes before them in the backward
    pass.
    """

    @staticmethod
    def forward(ctx: Raw, total: Tensor, start: Tensor, passes: Passes) -> Tensor:
        ctx.passes = passes
        return total.clone()

    @staticmethod
    def backward(ctx: Raw, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        ctx.passes.upstream = grads[0]
        return grads[0], grads[0], None


class _Carried(torch.autograd.Function):
    """The spikes; the backward pass gives the penalty of the same call its share of the gradient."""

    @staticmethod
    def forward(ctx: Raw, spikes: Tensor, penalty: Tensor, name: str, passes: Passes) -> Tensor:
        ctx.passes, ctx.name = passes, name
        ctx.like = penalty.new_zeros(())
        return spikes.view_as(spikes)

    @staticmethod
    def backward(ctx: Raw, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        upstream = ctx.passes.upstream
        share = ctx.like if upstream is None else upstream.to(ctx.like) * ctx.passes.share(ctx.name)
        return grads[0], share, None, None


@checked
def guard(
    model: nn.Module,
    *,
    total_steps: int,
    delta: float = 0.5,
    sigma: float = 0.1,
    lambda_max: float = 0.4,
    side: Literal["both", "below"] = "both",
    noise_at_eval: bool = False,
    steps_done: int = 0,
) -> Guard:
    """Threshold Guarding Optimization (``TGO``) in your own training loop; restores the network at the end.

    ``g.penalty()`` belongs to the loss of every batch, ``g.step()`` after every step of the optimizer, of
    which there are ``total_steps`` (``steps_done`` of them earlier). ``delta``: distance from the threshold
    that potentials should keep. ``sigma``: deviation of the neurons' noise, in training, and with
    ``noise_at_eval`` in evaluation. ``lambda_max``: weight of the penalty at the last step. ``side`` 'below'
    penalizes potentials under the threshold only. Passes in eval mode, inside attacks of spikeguard and
    inside ``g.paused()`` do not count. UserError on nonsense, or if the model has no neurons. arXiv
    2602.20548, ICLR 2026.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), sg.LIF(decay=0.5), torch.nn.Linear(8, 2))
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> with sg.guard(model.train(), total_steps=10) as g:
    ...     for _ in range(10):
    ...         logits = model(torch.rand(3, 5, 4)).mean(0)
    ...         loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1, 0])) + g.penalty()
    ...         optimizer.zero_grad()
    ...         loss.backward()
    ...         optimizer.step()
    ...         g.step()
    >>> round(g.weight, 3)
    0.4
    """
    if total_steps < 1:
        raise UserError(f"guard: total_steps = {total_steps} must be at least 1")
    if not 0 <= steps_done <= total_steps:
        raise UserError(f"guard: steps_done = {steps_done} must lie in [0, total_steps = {total_steps}]")
    settings = TGO(delta, lambda_max, sigma, side, noise_at_eval=noise_at_eval)
    return Guard(model, settings, total_steps, steps_done)
