"""Weights and training state on disk: safetensors with JSON beside or inside it, written by rename.

Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from spikeguard.data.images import Dataset
from spikeguard.errors import UserError
from spikeguard.kernels import cpp_build
from spikeguard.records import schema1
from spikeguard.records.build import build, table, unbuild
from spikeguard.records.files import write_bytes
from spikeguard.records.plain import Json, plain
from spikeguard.records.schema import Conditions, EpochRow
from spikeguard.runtime.machine import machine
from spikeguard.training.recipe import Recipe

WEIGHTS, STATE, RECORD, METRICS = "weights.safetensors", "state.safetensors", "run.json", "metrics.jsonl"


@dataclass
class Position:
    """Progress of a training: ``batch`` steps into ``epoch``, its sums, the rows of earlier epochs."""

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    rows: tuple[EpochRow, ...] = ()

    @staticmethod
    def of(values: Json, where: str) -> Position:
        """From plain values, with rows as this version or version 0.1 wrote them; UserError if damaged."""
        progress = dict(table(values, where))
        rows = progress.get("rows", ())
        if isinstance(rows, list):
            progress["rows"] = [schema1.epoch(table(row, where)) for row in rows]
        return build(Position, progress, where)


@dataclass(frozen=True)
class DataShape:
    """What a network knows of its data set: classes, shape of an image, mean and std of a channel."""

    classes: tuple[str, ...]
    in_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def conditions_here(device: torch.device) -> Conditions:
    """What a training on this device, in this process, depends on besides its recipe."""
    return Conditions(
        threads=torch.get_num_threads(),
        path=cpp_build.path(device.type),
        device=device.type,
        torch=torch.__version__,
        spikeguard=machine().versions["spikeguard"],
        instructions=machine().instructions,
    )


def save_weights(path: Path, net: nn.Module, recipe: Recipe, data: Dataset) -> None:
    """Write weights, recipe and what the network knows of its data: enough to load it."""
    shape = DataShape(data.classes, data.in_shape, data.mean, data.std)
    save_tensors(path, net.state_dict(), {"recipe": recipe.values(), "data": unbuild(shape)})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Write tensors and metadata to one file, atomically."""
    held = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_bytes(path, save(held, {k: json.dumps(v) for k, v in metadata.items()}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Json]]:
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
    recipe: Recipe,
    conditions: Conditions,
    hooks: Mapping[str, Tensor],
) -> None:
    """Write all that resuming needs to one file and the metrics beside it; ``hooks``: the defenses' state."""
    tensors = {f"net.{k}": v for k, v in net.state_dict().items()}
    named = {id(p): n for n, p in net.named_parameters()}
    for parameter, state in optimizer.state.items():
        if state.get("momentum_buffer") is not None:
            tensors[f"momentum.{named[id(parameter)]}"] = state["momentum_buffer"]
    tensors |= {f"hook.{k}": v for k, v in hooks.items()}
    needed = {"progress": plain(progress), "conditions": _needed(recipe, conditions)}
    save_tensors(folder / STATE, tensors, needed)
    write_bytes(folder / METRICS, "".join(json.dumps(plain(row)) + "\n" for row in progress.rows).encode())


def _needed(recipe: Recipe, conditions: Conditions) -> dict[str, object]:
    """What has to be the same for a training to resume to the same bits."""
    return {"recipe": recipe.values(), **unbuild(conditions)}


def recipe_of_state(folder: Path) -> dict[str, object]:
    """Plain values of the recipe of an interrupted run; UserError if the folder has none."""
    path = folder / STATE
    _, metadata = load_tensors(path)
    conditions = table(metadata.get("conditions"), f"{path}: conditions")
    return dict(table(conditions.get("recipe"), f"{path}: recipe"))


def load_state(
    folder: Path, net: nn.Module, optimizer: torch.optim.SGD, recipe: Recipe, conditions: Conditions | None
) -> tuple[Position, dict[str, Tensor]]:
    """Restore a saved state and return the state of the defenses.

    UserError if it is another recipe's, or was made under other conditions, under which a run could not go on
    to the same bits. ``conditions`` None: any are good.
    """
    path = folder / STATE
    tensors, metadata = load_tensors(path)
    conditions_then = table(metadata.get("conditions"), f"{path}: conditions")
    needed = {"recipe": recipe.values()} if conditions is None else _needed(recipe, conditions)
    for name, value in needed.items():
        before = conditions_then.get(name)
        if name == "recipe":  # of an older version: without the fields that came since
            before = Recipe.of(table(before, f"{path}: recipe"), f"{path}: recipe").values()
        if before != value:
            raise UserError(
                f"{path} was made with {name} = {before}, now {name} = {value}: resume with the same to get "
                "the same bits"
            )
    put_weights(net, {k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")}, path)
    for name, parameter in net.named_parameters():
        if (buffer := tensors.get(f"momentum.{name}")) is not None:
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
    hooks = {k.removeprefix("hook."): v for k, v in tensors.items() if k.startswith("hook.")}
    return Position.of(metadata.get("progress"), f"{path}: progress"), hooks
