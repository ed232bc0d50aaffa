"""``wrap``: a network of any framework as a model for every function of the package."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn

from spikeguard.arguments import checked
from spikeguard.errors import UserError, unknown
from spikeguard.inputs import take_images
from spikeguard.wrapping.outputs import REDUCTIONS
from spikeguard.wrapping.verify import sample_for, verify
from spikeguard.wrapping.wrapped import Calling, Layout, Wrapped

Numbers = float | Sequence[float]


@checked
def wrap(
    model: nn.Module,
    *,
    timesteps: int | None = None,
    layout: Layout = "steps",
    output: int | str | None = None,
    reduce: Literal["mean", "sum", "last", "max", "first_spike"] = "mean",
    state: int | None = None,
    encoder: Literal["direct", "repeat", "poisson", "latency", "frames"] = "direct",
    mean: Numbers | None = None,
    std: Numbers | None = None,
    reset: Callable[[nn.Module], object] | None = None,
    sample: object = None,
) -> Wrapped:
    """A spiking network of any framework as a model: images ``[N, C, H, W]`` in [0, 1] to logits ``[N, K]``.

    Every call begins in the reset state of this network's neurons and leaves the network as it was. The
    model's state dict is that of the network.

    Args:
        timesteps: steps T of a network that has no loop over time of its own.
        layout: how it is called: 'steps', T times with ``[N, ...]``; once with 'time_first' ``[T, N, ...]``,
            'batch_first' ``[N, T, ...]`` or 'folded' ``[N * T, ...]``. A network with a loop of its own
            (``timesteps`` None) is called once with the images; layout 'batch_first' then says that it
            answers ``[N, T, K]`` and not ``[T, N, K]``.
        output: the part of a tuple or mapping that holds the scores, by place or name; None: the first.
        reduce: logits of the answers of all steps: 'mean' (rate), 'sum' (spike counts), 'last', 'max'
            (membranes), 'first_spike' (steps from the first spike to the end).
        state: the part of a tuple that a network takes as second argument of the next step.
        encoder: 'direct' (also called 'repeat': the image in every step), 'poisson', 'latency', or 'frames'
            for samples ``[N, T, ...]`` that have a time of their own.
        mean: subtracted from the images; std: then divided by; one number or one a channel.
        reset: clears the state of neurons of no known framework.
        sample: images to check the network on; None: random ones of a usual shape.

    Raises:
        UserError: the network carries state that no reset reaches, more than 2 % of its predictions change
            with the batch, no gradient reaches the images, and what to do.

    >>> layers = torch.nn.Sequential(torch.nn.Flatten(2), torch.nn.Linear(64, 10), sg.LIF(decay=0.5))
    >>> model = sg.wrap(layers, timesteps=4, layout="time_first", sample=x)
    >>> model(x).shape
    torch.Size([6, 10])
    """
    calling = Calling(timesteps, layout, output, reduce, state, encoder)
    _check(calling, mean is not None or std is not None)
    wrapped = Wrapped(model, calling)
    wrapped.own_reset = reset
    wrapped.normalized_by(_numbers(mean, "mean"), _numbers(std, "std"))
    if any(v <= 0 for v in _numbers(std, "std") or ()):
        raise UserError(f"wrap: std = {std} must be above 0")
    wrapped.to(next((p.device for p in model.parameters()), torch.device("cpu")))
    wrapped.training = model.training
    images = sample_for(wrapped) if sample is None else take_images(sample)
    wrapped.notes = tuple(verify(wrapped, images))
    return wrapped


def _check(calling: Calling, normalized: bool) -> None:
    """UserError on arguments that do not fit together."""
    encoder = calling.encoder
    if calling.reduce not in REDUCTIONS:
        raise unknown("reduction", calling.reduce, REDUCTIONS, "wrap: ")
    if calling.timesteps is not None and calling.timesteps < 1:
        raise UserError(f"wrap: timesteps = {calling.timesteps} must be at least 1")
    if normalized and encoder in ("poisson", "latency"):
        raise UserError(f"wrap: mean and std are for images, the encoder {encoder!r} takes pixels in [0, 1]")
    if calling.timesteps is None and encoder in ("poisson", "latency"):
        raise UserError(f"wrap: the encoder {encoder!r} needs timesteps=")
    if calling.timesteps is None and calling.layout in ("time_first", "folded") and encoder != "frames":
        raise UserError(f"wrap: layout={calling.layout!r} needs timesteps=, the steps of the sequence")
    if calling.state is not None and calling.layout != "steps":
        raise UserError("wrap: state= is for layout='steps', where a network is called once a step")


def _numbers(values: Numbers | None, name: str) -> Sequence[float] | None:
    if values is None:
        return None
    return [float(values)] if isinstance(values, numbers.Real) else [float(v) for v in values]  # type: ignore[union-attr]
