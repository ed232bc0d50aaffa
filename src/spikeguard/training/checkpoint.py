"""Weights and training state on disk: safetensors with JSON beside or inside it, written by rename.

Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
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
from spikeguard.records.training import Conditions, EpochRow
from spikeguard.runtime.machine import machine
from spikeguard.training.provenance import check_installed, needs
from spikeguard.training.recipe import Recipe

DIGEST = "digest"
KNOWN = {"recipe", "data", "conditions", "progress", "plugins", "factory", "hardening", DIGEST}
"""Metadata of the files of this version and of earlier ones."""
WEIGHTS, STATE, RECORD, METRICS = "weights.safetensors", "state.safetensors", "run.json", "metrics.jsonl"


SUMS = {"loss", "task_loss", "penalty", "train_accuracy"}
"""What is summed up over the steps of an epoch."""


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
    """What a network knows of its data set: classes, shape of an image, mean and std of a channel, the digest
    of images of the user's own."""

    classes: tuple[str, ...]
    in_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str | None = None


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


def save_weights(path: Path, net: nn.Module, recipe: Recipe, data: Dataset) -> str:
    """Write weights, recipe and what the network knows of its data: enough to load it. Returns the digest."""
    shape = DataShape(data.classes, data.in_shape, data.mean, data.std, data.digest)
    metadata = {"recipe": recipe.values(), "data": unbuild(shape), **needs(recipe)}
    return save_tensors(path, net.state_dict(), metadata)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> str:
    """Write tensors and metadata to one file, atomically, with a digest of both; returns the digest."""
    held = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    texts = {k: json.dumps(v) for k, v in metadata.items() if k != DIGEST}
    digest = _digest(held, texts)
    write_bytes(path, save(held, {**texts, DIGEST: json.dumps(digest)}))
    return digest


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Tensors and metadata of a file; UserError if it is missing or damaged.

    Its digest is among the metadata; files of version 0.1 have none.
    """
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            texts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        metadata = {k: json.loads(v) for k, v in texts.items()}
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error})") from error
    if unknown := sorted(set(texts) - KNOWN):
        raise UserError(f"{path} is damaged or was not written by spikeguard: it has {unknown[0]!r}")
    written = metadata.get(DIGEST)
    if written is not None and written != _digest(tensors, {k: v for k, v in texts.items() if k != DIGEST}):
        raise UserError(f"{path} is damaged: what it holds is not what was written (another digest)")
    return tensors, metadata


def _digest(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """The first 16 digits of a hash of names, shapes, dtypes and values, and of the metadata."""
    total = hashlib.sha256(json.dumps(dict(sorted(texts.items()))).encode())
    for name in sorted(tensors):
        t = tensors[name]
        total.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
        total.update(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def put_weights(net: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy weights into a network; UserError if they are another network's, or no numbers."""
    own = net.state_dict()
    for name in own:
        if name not in tensors:
            raise UserError(f"{path} is a checkpoint of another network: it has no {name}")
        if tensors[name].shape != own[name].shape:
            raise UserError(
                f"{path} is a checkpoint of another network: {name} has shape {tuple(tensors[name].shape)}, "
                f"expected {tuple(own[name].shape)}"
            )
        if tensors[name].dtype != own[name].dtype:
            raise UserError(
                f"{path} is a checkpoint of another network: {name} is {tensors[name].dtype}, expected "
                f"{own[name].dtype}"
            )
        if tensors[name].is_floating_point() and bool(tensors[name].isnan().any()):
            raise UserError(f"{path} is damaged: {name} holds NaN")
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
    needed = {"progress": plain(progress), "conditions": _needed(recipe, conditions), **needs(recipe)}
    save_tensors(folder / STATE, tensors, needed)
    write_bytes(folder / METRICS, "".join(json.dumps(plain(row)) + "\n" for row in progress.rows).encode())


def _needed(recipe: Recipe, conditions: Conditions) -> dict[str, object]:
    """What has to be the same for a training to resume to the same bits."""
    return {"recipe": recipe.values(), **unbuild(conditions)}


def recipe_of_state(folder: Path) -> dict[str, object]:
    """Plain values of the recipe of an interrupted run; UserError if the folder has none."""
    path = folder / STATE
    _, metadata = load_tensors(path)
    check_installed(metadata.get("plugins"), str(path))
    conditions = table(metadata.get("conditions"), f"{path}: conditions")
    return dict(table(conditions.get("recipe"), f"{path}: recipe"))


def load_state(
    folder: Path,
    net: nn.Module,
    optimizer: torch.optim.SGD,
    recipe: Recipe,
    conditions: Conditions | None,
    per_epoch: int,
) -> tuple[Position, dict[str, Tensor]]:
    """Restore a saved state and return the state of the defenses. ``per_epoch``: steps of an epoch.

    UserError if it is damaged, another recipe's, or was made under other conditions, under which a run could
    not go on to the same bits. Nothing is restored then. ``conditions`` None: any are good.
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
    position = Position.of(metadata.get("progress"), f"{path}: progress")
    _check_position(position, recipe, per_epoch, path)
    momentum = _momentum(tensors, net, started=position.epoch + position.batch > 0, path=path)
    put_weights(net, {k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")}, path)
    for name, parameter in net.named_parameters():
        if name in momentum:
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum[name])
    return position, {k.removeprefix("hook."): v for k, v in tensors.items() if k.startswith("hook.")}


def _check_position(at: Position, recipe: Recipe, per_epoch: int, path: Path) -> None:
    """UserError unless a training of this recipe can stand there."""
    where = f"{path}: progress"
    inside = 0 <= at.epoch < recipe.epochs and 0 <= at.batch <= per_epoch
    if not inside and (at.epoch, at.batch) != (recipe.epochs, 0):
        raise UserError(
            f"{where}: epoch {at.epoch}, step {at.batch} is no place in a training of {recipe.epochs} epochs "
            f"of {per_epoch} steps"
        )
    if [row.epoch for row in at.rows] != list(range(1, at.epoch + 1)):
        raise UserError(f"{where}: {len(at.rows)} rows do not belong to the first {at.epoch} epochs")
    if set(at.sums) != (SUMS if at.batch else set()) or not all(map(math.isfinite, at.sums.values())):
        raise UserError(f"{where}: the sums are not those of {at.batch} steps of an epoch")
    if not 0 <= at.seconds < math.inf:
        raise UserError(f"{where}: seconds = {at.seconds} must be at least 0")


def _momentum(tensors: Mapping[str, Tensor], net: nn.Module, started: bool, path: Path) -> dict[str, Tensor]:
    """The optimizer's momentum by parameter: of all of them once a step was taken, of none before."""
    held = {k.removeprefix("momentum."): v for k, v in tensors.items() if k.startswith("momentum.")}
    parameters = dict(net.named_parameters())
    if odd := sorted(set(held) ^ set(parameters if started else ())):
        raise UserError(f"{path} is damaged: the momentum of {odd[0]} is missing or out of place")
    for name, value in held.items():
        if value.shape != parameters[name].shape or not value.is_floating_point():
            raise UserError(f"{path} is damaged: the momentum of {name} has another shape or dtype")
    return held
