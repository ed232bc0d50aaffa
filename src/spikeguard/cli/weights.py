"""Weights of a user's own network: a file of safetensors, or of torch where it holds tensors only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spikeguard.arguments import error_line
from spikeguard.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

INSIDE = ("state_dict", "model", "net", "model_state_dict")
"""Names under which a checkpoint keeps the weights."""
PARALLEL = "module."  # what DataParallel puts in front


def put_own_weights(model: object, path: Path) -> None:
    """Load all weights of a file into the network; UserError if one is missing, too many or misshapen.

    The state of neurons that a framework keeps among them (sinabs' membranes) is left out.
    """
    from torch import nn

    from spikeguard.wrapping.neurons import state_names

    if not isinstance(model, nn.Module):
        raise UserError(f"--weights is for a torch module, the factory returned a {type(model).__name__}")
    tensors = _read(path)
    if tensors and all(name.startswith(PARALLEL) for name in tensors):
        tensors = {name.removeprefix(PARALLEL): t for name, t in tensors.items()}
    state, own = state_names(model), model.state_dict()
    given = {name: t for name, t in tensors.items() if name not in state}
    _check(given, {name: t for name, t in own.items() if name not in state}, path)
    model.load_state_dict(given, strict=False)  # all but the state of neurons


def _check(given: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    if missing := [name for name in own if name not in given]:
        raise UserError(f"{path} holds weights of another network: it has no {missing[0]}")
    if extra := [name for name in given if name not in own]:
        raise UserError(f"{path} holds weights of another network: it has {extra[0]}, which this one lacks")
    for name, t in given.items():
        if t.shape != own[name].shape:
            raise UserError(
                f"{path} holds weights of another network: {name} has shape {tuple(t.shape)}, expected "
                f"{tuple(own[name].shape)}"
            )


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU."""
    import torch

    from spikeguard.interchange.state_files import UNREADABLE, held_in

    if not path.is_file():
        raise UserError(f"no file of weights {path}")
    try:
        held = held_in(path)
    except UNREADABLE as error:
        if path.suffix == ".safetensors":
            raise UserError(f"{path} is damaged or no safetensors file ({error_line(error)})") from error
        raise UserError(
            f"{path} is damaged, or holds more than tensors, and code of a file is never run: save "
            "model.state_dict(), best with safetensors.torch.save_file"
        ) from error
    if isinstance(held, Mapping):
        held = next((held[name] for name in INSIDE if isinstance(held.get(name), Mapping)), held)
    if not isinstance(held, Mapping) or not all(isinstance(t, torch.Tensor) for t in held.values()):
        raise UserError(f"{path} holds a {type(held).__name__}, must hold a state dict: names and tensors")
    return {str(name): t for name, t in held.items()}
