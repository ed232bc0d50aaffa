"""Does a wrapped network answer as a model must? Known traps are mended, the rest is named in one line."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikeguard.adapters.registry import framework
from spikeguard.errors import ModelError, UserError
from spikeguard.models import eval_mode, logits_of, moved, rounding
from spikeguard.random import draws
from spikeguard.wrapping import neurons
from spikeguard.wrapping.repeatable import CHANGED, changed_by_batch, more_than, same, seeded, stateful
from spikeguard.wrapping.wrapped import Wrapped

SAMPLE = 32  # images that a network is checked on
SIDES = (28, 32, 34, 64, 128, 224)


def sample_for(wrapped: Wrapped, seed: int = 0) -> Tensor:
    """Random images of the first usual shape that the network takes; UserError if it takes none."""
    generator = torch.Generator().manual_seed(seed)
    like = next(wrapped.parameters(), torch.zeros(0, dtype=torch.float32))
    first = UserError("it has no layer that says what it takes")
    for shape in _shapes(wrapped):
        x = torch.rand(4, *shape, generator=generator, dtype=torch.float32).to(like.device)
        try:
            with eval_mode(wrapped), torch.no_grad():
                logits_of(wrapped, x)
        except UserError as error:
            first = error
            continue
        return torch.rand(SAMPLE, *shape, generator=generator, dtype=torch.float32).to(like.device)
    raise UserError(
        f"wrap: cannot guess which images the network takes ({first}): pass sample=images, [N, C, H, W] in "
        "[0, 1]"
    )


def _shapes(wrapped: Wrapped) -> list[tuple[int, ...]]:
    """Usual shapes of images for the first layer that has weights."""
    steps = (wrapped.calling.timesteps or 4,) if wrapped.has_frames else ()
    for module in wrapped.model.modules():
        if isinstance(module, nn.Conv2d):
            return [(*steps, module.in_channels, side, side) for side in SIDES]
        if isinstance(module, nn.Linear):
            size = module.in_features
            pictures = [(c, s, s) for c in (1, 3, 2) for s in range(1, 225) if c * s * s == size]
            return [*((*steps, *shape) for shape in pictures), (*steps, size)]
    return []


def verify(wrapped: Wrapped, x: Tensor) -> list[str]:
    """Check the network on images and mend what can be mended; what was found, a line each.

    Raises:
        UserError: the network carries state, depends on the batch or gives no gradient, and what to do.
    """
    with eval_mode(wrapped):
        random = _random(wrapped, x)
        notes = ["the network is random: attacks average over its noise"] if random else []
        notes += _open_gradient(wrapped, x, random)
        if not random and (share := _batch_share(wrapped, x)):
            raise UserError(
                f"wrap: {100 * share:.0f} % of the predictions change with the rest of the batch, at most "
                f"{100 * CHANGED:.0f} % may: use running statistics in eval mode, and check which dimension "
                "is the batch (layout='time_first' or 'batch_first')"
            )
    return notes


def _random(wrapped: Wrapped, x: Tensor) -> bool:
    """Whether the network draws random numbers; UserError if it carries state instead."""
    try:
        first, again = same(wrapped, x, False), same(wrapped, x, False)
        random = bool((moved(first, again) > rounding(first)).any())
        carries = random and stateful(wrapped, x)
    except ModelError as error:  # state of another batch does not fit this one
        if not neurons.state_of(wrapped.model):
            raise
        raise UserError(f"wrap: {_state_line(wrapped)}") from error
    if carries:
        raise UserError(f"wrap: {_state_line(wrapped)}")
    return random


def _batch_share(wrapped: Wrapped, x: Tensor) -> float:
    """The largest share of predictions that change with the batch, 0 where no more do than by rounding."""
    changed = changed_by_batch(wrapped, x)
    return max((float(r.float().mean()) for r in changed.values() if more_than(CHANGED, r)), default=0.0)


def _state_line(wrapped: Wrapped) -> str:
    held = neurons.state_of(wrapped.model)
    kept = f" (it keeps {', '.join(held[:3])})" if held else ""
    return (
        f"the network gives other logits for the same images the second time: it carries state{kept} that no "
        "reset reaches: pass reset=, a function of the network that clears it"
    )


def _open_gradient(wrapped: Wrapped, x: Tensor, random: bool) -> list[str]:
    """Neurons that hide the gradient in eval mode are run in training mode, if they then answer the same."""
    inner = neurons.firing(wrapped.model)
    before = same(wrapped, x, random)
    hidden = _gradients(wrapped, x)
    if inner:
        wrapped.open_gradient = True
        opened = _gradients(wrapped, x)
        if torch.equal(same(wrapped, x, random), before) and opened > hidden:
            kind = framework(inner[0])
            closed, after = (f"{100 * max(share, 0):.0f} %" for share in (hidden, opened))
            return [
                f"its {kind} neurons give {closed} of the images an input gradient in eval mode, {after} in "
                "training mode with the same answers: they run in training mode, other layers in eval mode"
            ]
        wrapped.open_gradient = False
    if hidden < 0:
        raise UserError(
            "wrap: no gradient reaches the images in eval mode: search the network for detach, no_grad, "
            "rounding or neurons without a surrogate gradient"
        )
    if not hidden:
        return ["the input gradient is zero on all images of the sample: its neurons may be silent"]
    return []


def _gradients(wrapped: Wrapped, x: Tensor) -> float:
    """The share of images with an input gradient that is not zero; -1 where no graph leads to the images."""
    leaf = x.clone().requires_grad_()
    with torch.enable_grad(), seeded(wrapped, draws.key("check", 0)):
        logits = logits_of(wrapped, leaf)
        weights = torch.linspace(1, 2, logits.shape[1], dtype=logits.dtype, device=logits.device)
        got = (
            torch.autograd.grad((logits * weights).sum(), leaf, allow_unused=True)[0]
            if logits.requires_grad
            else None
        )
    return -1.0 if got is None else float((got.flatten(1).abs().amax(1) > 0).float().mean())
