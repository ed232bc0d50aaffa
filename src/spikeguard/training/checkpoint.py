"""Weights and training state on disk: safetensors with JSON beside or inside it, written by rename.

Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from spikeguard.errors import UserError
from spikeguard.records.files import write_bytes

WEIGHTS, STATE, RECORD, METRICS = "weights.safetensors", "state.safetensors", "run.json", "metrics.jsonl"


@dataclass
class Position:
    """Progress of a training: ``batch`` steps into ``epoch``, its sums, the rows of earlier epochs."""

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and metadata to one file, atomically."""
    held = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_bytes(path, save(held, {k: json.dumps(v) for k, v in metadata.items()}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file; UserError if it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a mapping)
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error})") from error


def put_weights(net: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy weights into a network; UserError if they are another network's."""
    own = net.state_dict()
    for name in own:
        if name not in tensors:
            raise UserError(f"{path} is a checkpoint of another network: it has no {name}")
        if tensors[name].shape != own[name].shape:
            raise UserError(
                f"{path} is a checkpoint of another network: {name} has shape {tuple(tensors[name].shape)}, "
                f"expected {tuple(own[name].shape)}"
            )
    if extra := sorted(set(tensors) - set(own)):
        raise UserError(f"{path} is a checkpoint of another network: it has {extra[0]}, which this one lacks")
    net.load_state_dict(dict(tensors))


def save_state(
    folder: Path,
    net: nn.Module,
    optimizer: torch.optim.SGD,
    progress: Position,
    conditions: Mapping[str, Any],
    hooks: Mapping[str, Tensor],
) -> None:
    """Write all that resuming needs to one file and the metrics beside it; ``hooks``: the defenses' state."""
    tensors = {f"net.{k}": v for k, v in net.state_dict().items()}
    named = {id(p): n for n, p in net.named_parameters()}
    for parameter, state in optimizer.state.items():
        if state.get("momentum_buffer") is not None:
            tensors[f"momentum.{named[id(parameter)]}"] = state["momentum_buffer"]
    tensors |= {f"hook.{k}": v for k, v in hooks.items()}
    save_tensors(folder / STATE, tensors, {"progress": asdict(progress), "conditions": dict(conditions)})
    write_bytes(folder / METRICS, "".join(json.dumps(row) + "\n" for row in progress.rows).encode())


def load_state(
    folder: Path, net: nn.Module, optimizer: torch.optim.SGD, conditions: Mapping[str, Any]
) -> tuple[Position, dict[str, Tensor]]:
    """Restore a saved state and return the state of the defenses.

    UserError if it was made under other conditions, under which a run could not go on to the same bits.
    """
    path = folder / STATE
    tensors, metadata = load_tensors(path)
    for name, value in conditions.items():
        if (before := metadata["conditions"].get(name)) != value:
            raise UserError(
                f"{path} was made with {name} = {before}, now {name} = {value}: resume with the same to get "
                "the same bits"
            )
    put_weights(net, {k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")}, path)
    for name, parameter in net.named_parameters():
        if (buffer := tensors.get(f"momentum.{name}")) is not None:
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
    return Position(**metadata["progress"]), {
        k.removeprefix("hook."): v for k, v in tensors.items() if k.startswith("hook.")
    }
