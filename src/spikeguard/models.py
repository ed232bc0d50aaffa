"""A model, for the rest of the package, is a callable from images to logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from spikeguard.errors import UserError
from spikeguard.neurons import spiking

Model = Callable[[Tensor], Tensor]
SUMS = 1e-4
"""Share of the largest logit by which float32 sums in another order may differ."""


@contextmanager
def eval_mode(model: Model) -> Iterator[None]:
    """Put the model in eval mode; every module's own mode is restored afterwards."""
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def check_logits(model: Model, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The model's answers on the first eight images, twice, for ``is_stochastic`` to compare.

    Raises UserError if they are not logits ``[N, classes]`` for the labels ``y``.

    >>> first, again = check_logits(net, x, y)
    >>> first.shape, is_stochastic(net, first, again)
    (torch.Size([6, 10]), False)
    """
    with torch.no_grad():
        logits = model(x[:8])
        again = model(x[:8])
    if logits.dim() != 2 or len(logits) != len(x[:8]) or not logits.is_floating_point():
        raise UserError(
            f"the model gives {logits.dtype} of shape {tuple(logits.shape)}, must give logits [N, classes]"
        )
    if int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
        raise UserError(
            f"labels lie in [{int(y.min())}, {int(y.max())}], the model has classes 0 to "
            f"{logits.shape[1] - 1}"
        )
    return logits, again


def is_stochastic(model: Model, first: Tensor, again: Tensor) -> bool:
    """Does the model answer the same images differently, by more than ``rounding``, or have noise in
    evaluation that may not show?"""
    noisy = isinstance(model, nn.Module) and any(
        s.noise and s.noise.at_eval and s.noise.sigma for s in spiking(model).values()
    )
    return noisy or bool((moved(first, again) > rounding(first)).any())


def moved(first: Tensor, other: Tensor) -> Tensor:
    """How far the logits of each image differ, ``[N]``, in shares of the largest finite logit of ``first``.

    Equal infinities and pairs of NaN count as equal.

    >>> from spikeguard.models import moved
    >>> moved(torch.tensor([[1.0, -torch.inf], [4.0, 0.0]]), torch.tensor([[2.0, -torch.inf], [4.0, 0.0]]))
    tensor([0.2500, 0.0000])
    """
    first, other = first.detach().float(), other.detach().float()
    same = (first == other) | (first.isnan() & other.isnan())
    apart = (first - other).abs().nan_to_num(torch.inf, torch.inf).masked_fill(same, 0.0)
    return apart.flatten(1).amax(1) / scale(first)


def scale(logits: Tensor) -> float:
    """The largest finite logit without its sign."""
    finite = logits[torch.isfinite(logits)].abs()
    return max(float(finite.max()), 1e-30) if finite.numel() else 1.0


def rounding(logits: Tensor) -> float:
    """The share of the largest logit by which two evaluations of the same function may differ.

    A kernel may add up in another order for another batch, device or thread. Logits that were rounded to
    bfloat16 or float16 may then differ by two of its steps; counts have no rounding.
    """
    values = logits.detach()
    if bool((values == values.round()).all()):
        return SUMS
    for dtype in (torch.bfloat16, torch.float16):
        if bool((values.to(dtype).to(values.dtype) == values).all()):
            return 2 * torch.finfo(dtype).eps
    return SUMS


def bitwise_equal(a: Tensor, b: Tensor) -> bool:
    """Are two tensors equal to the bit? NaN counts as equal to NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
