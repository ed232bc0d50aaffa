"""More ways to write the layer of ``ways.py``: what code bases and scripts do once each. In our own words."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from narrow import applied
from torch import Tensor, nn
from torch.autograd import Function
from ways import THRESHOLD, KeepsMembrane, Loop, Way, by, difference_detached, slope

Fire = Callable[[Tensor], Tensor]


class WithMembrane(Function):
    """Spikes and the membrane after its reset."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(v)
        s = (v > THRESHOLD).float()
        return s, v * (1 - s)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        v: Tensor = ctx.saved_tensors[0]
        return grads[0] * slope(v - THRESHOLD) + grads[1] * (v <= THRESHOLD)


class InPlace(Function):
    """Spikes in the memory of the potential."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v.clone())
        ctx.mark_dirty(v)
        return v.sub_(THRESHOLD).gt_(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * slope(ctx.saved_tensors[0] - THRESHOLD)


@torch.library.custom_op("spikeguard_tests::fire", mutates_args=())
def fire_operator(v: Tensor) -> Tensor:
    return (v > THRESHOLD).float()


def _kept(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


fire_operator.register_autograd(
    lambda ctx, grad: grad * slope(ctx.saved_tensors[0] - THRESHOLD), setup_context=_kept
)


class Stepped(nn.Module):
    """A loop in which a function gives the spikes and the membrane of every step."""

    def __init__(self, step: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.step = step

    def forward(self, current: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(current[0]), []
        for one in current:
            s, v = self.step(v / 2 + one)
            spikes.append(s)
        return torch.stack(spikes)


class Late(nn.Module):
    """Reset at the start of the next step, by a comparison of its own."""

    def __init__(self, fire: Fire) -> None:
        super().__init__()
        self.fire = fire

    def forward(self, current: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(current[0]), []
        for one in current:
            v = v * (1 - (v > THRESHOLD).float()) / 2 + one
            spikes.append(self.fire(v))
        return torch.stack(spikes)


class Allocated(nn.Module):
    """Masks written step by step into a tensor made before."""

    def forward(self, current: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(current[0]), torch.zeros_like(current)
        for t, one in enumerate(current):
            v = v / 2 + one
            spikes[t] = v > THRESHOLD
            v = v * (1 - spikes[t].detach())
        return spikes


class Refractory(nn.Module):
    """A gate of a refractory time, which never closes here."""

    def forward(self, current: Tensor) -> Tensor:
        v, waits, spikes = torch.zeros_like(current[0]), torch.zeros_like(current[0]), []
        for one in current:
            v = v / 2 + one
            spikes.append(applied(KeepsMembrane, v) * (waits <= 0).float())
            v = v * (1 - spikes[-1].detach())
        return torch.stack(spikes)


def wide(v: Tensor) -> tuple[Tensor, Tensor]:
    spikes = applied(KeepsMembrane, v)
    return spikes, v.masked_fill(spikes.bool(), 0.0)


def selected(v: Tensor) -> tuple[Tensor, Tensor]:
    spikes = applied(KeepsMembrane, v)
    return spikes, torch.where(v > THRESHOLD, torch.zeros_like(v), v)


def indexed(v: Tensor) -> tuple[Tensor, Tensor]:
    spikes, left = applied(KeepsMembrane, v), v.clone()
    left[spikes > 0] = 0.0
    return spikes, left


def soft(v: Tensor) -> Tensor:
    return torch.sigmoid(4 * (v - THRESHOLD))


def by_data(v: Tensor) -> Tensor:
    spikes = soft(v)
    spikes.data = (v.data > THRESHOLD).float()
    return spikes


def in_place_sum(v: Tensor) -> Tensor:
    spikes = soft(v).clone()
    spikes += ((v > THRESHOLD).float() - soft(v)).detach()
    return spikes


def by_index(v: Tensor) -> Tensor:
    spikes = torch.zeros_like(v)
    spikes[(v > THRESHOLD).nonzero(as_tuple=True)] = 1.0
    return spikes


def rounded(v: Tensor) -> Tensor:
    part = (v - THRESHOLD + 0.5).clamp(0, 1)
    return part + (part.round() - part).detach()


def exclusive(v: Tensor) -> Tensor:
    return ((v <= THRESHOLD) ^ torch.ones_like(v, dtype=torch.bool)).to(torch.uint8).float()


def compared_in_place(v: Tensor) -> Tensor:
    spikes = v.clone()
    spikes.gt_(THRESHOLD)
    return spikes


class Rounds(Function):
    """Rounds up and clamps in its forward pass."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v - THRESHOLD).ceil().clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * slope(ctx.saved_tensors[0] - THRESHOLD)


def filled_twice(v: Tensor) -> Tensor:
    return v.masked_fill(v > THRESHOLD, 1.0).masked_fill(v <= THRESHOLD, 0.0)


RARE = (
    Way("function gives spikes and membrane", "step functions", lambda: Stepped(WithMembrane.apply)),
    Way("function writes into its input", "memory savers", by(lambda v: applied(InPlace, v.clone()))),
    Way("operator of torch.library", "torch.library", by(lambda v: fire_operator(v))),
    Way(
        "layer in nn.DataParallel",
        "published checkpoints",
        lambda: nn.DataParallel(Loop(KeepsMembrane.apply)),
    ),
    Way("reset by a comparison of its own", "DIET-SNN, SpyTorch", lambda: Late(KeepsMembrane.apply)),
    Way("the same, straight-through", "snn scripts", lambda: Late(difference_detached)),
    Way("reset by masked_fill", "inference code", lambda: Stepped(wide)),
    Way("reset by torch.where", "norse", lambda: Stepped(selected)),
    Way("reset by an index", "simulators", lambda: Stepped(indexed)),
    Way("masks written into a tensor", "STBP-simple", Allocated),
    Way("gated by a refractory time", "BindsNET", Refractory),
    Way(
        "hard part of a detached potential",
        "snn scripts",
        by(lambda v: (v.detach() > THRESHOLD).float() - soft(v).detach() + soft(v)),
    ),
    Way("soft.data = hard", "binary networks", by(by_data)),
    Way("straight-through sum in place", "quantization code", by(in_place_sum)),
    Way(
        "soft times (hard / soft) detached",
        "quantization code",
        by(lambda v: soft(v) * ((v > THRESHOLD).float() / soft(v)).detach()),
    ),
    Way("1 - (v <= threshold)", "inference code", by(lambda v: 1.0 - (v <= THRESHOLD).float())),
    Way("a clamped number, rounded", "QCFS", by(rounded)),
    Way("sign of a ReLU", "binary networks", by(lambda v: torch.sign(F.relu(v - THRESHOLD)))),
    Way("a ReLU that is not 0", "inference code", by(lambda v: (F.relu(v - THRESHOLD) != 0).float())),
    Way(
        "torch.bucketize",
        "quantization code",
        by(lambda v: torch.bucketize(v, torch.tensor([THRESHOLD])).float()),
    ),
    Way("ones written by index", "inference code", by(by_index)),
    Way("masks by logic, then numbers", "inference code", by(exclusive)),
    Way("compared in place", "memory savers", by(compared_in_place)),
    Way("function rounds and clamps", "quantization code", by(lambda v: applied(Rounds, v))),
    Way("rounded up, then clamped", "QCFS", by(lambda v: (v - THRESHOLD).ceil().clamp(0, 1))),
    Way("filled where it fires and where not", "inference code", by(filled_twice)),
    Way(
        "F.threshold that is above 0",
        "inference code",
        by(lambda v: (F.threshold(v, THRESHOLD, 0) > 0).float()),
    ),
)
"""Ways of writing, as in ``WAYS``."""
