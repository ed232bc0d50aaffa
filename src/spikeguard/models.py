"""A model, for the rest of the package, is a callable from images to logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from spikeguard.errors import UserError
from spikeguard.neurons import spiking
from spikeguard.runtime.untouched import untouched

Model = Callable[[Tensor], Tensor]


@contextmanager
def eval_mode(model: Model) -> Iterator[None]:
    """Put the model in eval mode to measure it; everything it holds is put back afterwards."""
    with untouched(model), modes_kept(model):
        yield


@contextmanager
def modes_kept(model: Model) -> Iterator[None]:
    """Put the model in eval mode; every module's own mode is restored afterwards, and nothing else."""
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


def logits_of(model: Model, x: Tensor) -> Tensor:
    """The model's logits ``[N, K]`` for a copy of the images ``[N, ...]``: some models write into them."""
    return model(x.clone())


def check_logits(model: Model, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The model's answers on the first eight images, twice, for ``is_stochastic`` to compare.

    Raises UserError if they are not logits ``[N, classes]`` for the labels ``y``.

    >>> first, again = check_logits(net, x, y)
    >>> first.shape, is_stochastic(net, first, again)
    (torch.Size([6, 10]), False)
    """
    with torch.no_grad():
        logits = logits_of(model, x[:8])
        again = logits_of(model, x[:8])
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
    """Does the model answer the same images differently, or have noise in evaluation that may not show?"""
    noisy = isinstance(model, nn.Module) and any(
        s.noise and s.noise.at_eval and s.noise.sigma for s in spiking(model).values()
    )
    return noisy or not bitwise_equal(first, again)


def bitwise_equal(a: Tensor, b: Tensor) -> bool:
    """Are two tensors equal to the bit? NaN counts as equal to NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
