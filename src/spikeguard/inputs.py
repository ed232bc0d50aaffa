"""Images and labels as users hand them in: tensors, arrays, lists, taken where there is no doubt."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spikeguard.arguments import error_line, shown
from spikeguard.errors import SpikeguardWarning, UserError

LAST_BITS = 1e-6
"""How far outside [0, 1] rounding may put a pixel; it is clamped."""
LOADER = "; take them from it first: x, y = next(iter(loader))"
TWICE = 1 / 255 + LAST_BITS
"""The highest pixel of images that were divided by 255 twice."""


def take_images(x: object) -> Tensor:
    """Float images ``[N, ...]`` in [0, 1], detached, from a tensor or an array.

    float16 and bfloat16 become float32. Pixels a last bit outside are clamped, with a warning.
    UserError names what came otherwise.
    """
    images = _tensor(x, "images", "floats [N, C, H, W] in [0, 1]")
    if not images.is_floating_point():
        raise UserError(f"images are {images.dtype}; pass floats in [0, 1] (bytes: x.float() / 255)")
    if images.dtype not in (torch.float32, torch.float64):
        images = images.float()
    if images.dim() < 2 or not images.numel():
        raise UserError(f"images have shape {tuple(images.shape)}; pass a batch [N, C, H, W] with N >= 1")
    if not bool(torch.isfinite(images).all()):
        raise UserError("images hold values that are not finite")
    low, high = float(images.min()), float(images.max())
    outside = max(-low, high - 1)
    if outside > LAST_BITS:
        hint = (
            "normalize inside the model, not before"
            if low < -0.1
            else "bytes passed as floats? divide by 255"
            if high > 2
            else "clamp them, if that is rounding: x.clamp(0, 1)"
        )
        raise UserError(
            f"images lie in [{low:.3g}, {high:.3g}], {outside:.2g} outside of it: must lie in [0, 1] ({hint})"
        )
    if 0 < high <= TWICE:
        warnings.warn(
            f"images lie in [{low:.3g}, {high:.3g}], nearly black: divided by 255 twice?",
            SpikeguardWarning,
            stacklevel=4,
        )
    if outside > 0:
        warnings.warn(f"images lie {outside:.2g} outside of [0, 1]: clamped", SpikeguardWarning, stacklevel=4)
        images = images.clamp(0.0, 1.0)
    return images


def take_labels(y: object, images: Tensor) -> Tensor:
    """Labels int64 ``[N]``, like the images, from integers of any width: a tensor, array or list."""
    n = len(images)
    held = _tensor(y, "labels", f"integers of shape [{n}]", lists=True)
    whole = not (held.is_floating_point() or held.is_complex() or held.dtype == torch.bool)
    if held.shape == (n,) and whole:
        return held.to(images.device, torch.int64)
    hint = ""
    if held.dim() == 2 and len(held) == n and not held.is_complex():
        wide = held.double()
        if bool((((wide == 0) | (wide == 1)).all(1) & (wide.sum(1) == 1)).all()):
            hint = " (they are one-hot: pass y.argmax(1))"
    raise UserError(
        f"labels are {held.dtype} of shape {tuple(held.shape)}, must be integers of shape [{n}]{hint}"
    )


def take_ids(index: object, images: Tensor) -> Tensor:
    """The samples' numbers, int64 ``[N]``, from integers of any width."""
    held = _tensor(index, "index", f"integers of shape [{len(images)}]", lists=True)
    if held.shape != images.shape[:1]:
        raise UserError(f"index has shape {tuple(held.shape)}, must be [{len(images)}]")
    if held.is_floating_point() or held.is_complex() or held.dtype == torch.bool:
        raise UserError(f"index is {held.dtype}, must be integers of shape [{len(images)}]")
    return held.to(images.device, torch.int64)


def _tensor(value: object, name: str, allowed: str, lists: bool = False) -> Tensor:
    """A dense tensor of a tensor, an array, or a list of numbers; UserError in the name of the argument."""
    hint = LOADER if isinstance(value, (DataLoader, Dataset)) else ""
    refused = UserError(f"{name} are {shown(value)}, must be {allowed}: a tensor or an array{hint}")
    if isinstance(value, Tensor):
        if kind := not_dense(value):
            raise UserError(f"{name} are a {kind} tensor: pass a dense one")
        held = value.detach()
        return held.clone() if held.is_inference() else held
    if isinstance(value, np.ma.MaskedArray):
        raise UserError(f"{name} are a masked array: fill what is masked, or leave these images out")
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, (Tensor, np.ndarray)) for v in value):
        return _stacked(value, name, allowed, refused)
    if not isinstance(value, np.ndarray) and not (lists and isinstance(value, Sequence)):
        raise refused
    if isinstance(value, (str, bytes)):
        raise refused
    try:
        array = np.array(value)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    except Exception as error:  # ragged lists, objects, types that torch has not
        raise UserError(f"{refused} ({error_line(error)})") from error


def not_dense(value: Tensor) -> str:
    """What a tensor is if its values are not simply there: 'nested', 'sparse', ...; else ""."""
    if value.is_nested:
        return "nested"
    if value.layout != torch.strided:
        return "sparse"
    return "quantized" if value.is_quantized else "meta" if value.is_meta else ""


def _stacked(values: Sequence[object], name: str, allowed: str, refused: UserError) -> Tensor:
    """One tensor of a list of tensors or arrays, one for each image."""
    try:
        return torch.stack([_tensor(value, name, allowed) for value in values])
    except (RuntimeError, TypeError) as error:  # of different shapes or types
        raise UserError(f"{refused} ({error_line(error)})") from error
