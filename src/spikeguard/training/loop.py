"""Running a training: its checkpoints, interruption and resuming, and what it leaves in its folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from spikeguard.arguments import checked
from spikeguard.data.images import Dataset
from spikeguard.data.sources import load_data
from spikeguard.errors import Interrupted, UserError
from spikeguard.networks.classifier import Classifier
from spikeguard.records.files import folder_of_results, remove_unfinished
from spikeguard.records.training import TrainingRecord
from spikeguard.runtime.float32 import exact, float32_by_default
from spikeguard.runtime.stop import Stop, ctrl_c
from spikeguard.training.builder import pick_device, settled
from spikeguard.training.checkpoint import RECORD, STATE, WEIGHTS, load_state, save_state, save_weights
from spikeguard.training.recipe import Recipe
from spikeguard.training.record import metrics, training_record
from spikeguard.training.trainer import Report, Trainer


@dataclass(frozen=True)
class Run:
    """A finished training: the network in eval mode, its folder (None if not kept), the record.

    >>> recipe = sg.Recipe(epochs=1, train_images=100, timesteps=2, batch_size=50, options={"width": 2})
    >>> run = sg.train(recipe)
    >>> run.path, [row.epoch for row in run.record.epochs]
    (None, [1])
    """

    net: Classifier
    path: Path | None
    record: TrainingRecord

    def __repr__(self) -> str:
        record = self.record
        reached = record.validation_accuracy
        accuracy = "" if reached is None else f", validation accuracy {100 * reached:.1f} %"
        where = "not kept" if self.path is None else f"in {self.path}"
        return (
            f"Run({self.record.parameters} parameters, {len(self.record.epochs)} epochs{accuracy}, {where})"
        )

    @property
    def metrics(self) -> dict[str, object]:
        """The record as a dict, as in version 0.1. Deprecated since 0.2: use ``record``."""
        warnings.warn("Run.metrics is deprecated since 0.2, use Run.record", DeprecationWarning, stacklevel=2)
        return metrics(self.record)


def _check_images(data: Dataset) -> None:
    """UserError unless there are training images ``[N, C, H, W]``."""
    if not len(data.train):
        raise UserError(
            f"train: {data.name} has test images only: it must have train and test (folders), or x_train, "
            "y_train, x_test and y_test (arrays)"
        )
    if data.train.x.dim() != 4:
        raise UserError(f"train: images of {data.name} have shape {data.in_shape}, must have (C, H, W)")


@checked
@exact()
@float32_by_default()
def train(
    recipe: Recipe,
    out: str | Path | None = None,
    resume: bool | Literal["anywhere"] = False,
    device: str | None = None,
    *,
    data: Dataset | None = None,
    progress: Callable[[Report], None] | None = None,
    save_every: int = 0,
    stop: Stop | None = None,
) -> Run:
    """Train a network by a recipe; with ``out``, keep it in that folder.

    A checkpoint is written at every epoch's end, every ``save_every`` steps, and on Ctrl-C or once ``stop``
    is set, which raises Interrupted. ``resume`` goes on from the last one to the same bits as an unbroken
    run; 'anywhere' goes on under other conditions as well (machine, threads, version), to other last bits.
    ``data`` None loads ``recipe.data``. UserError: the folder holds something already, the state is
    another recipe's, the loss is not finite, the disk is full.

    >>> recipe = sg.Recipe(epochs=1, train_images=100, timesteps=2, batch_size=50, options={"width": 2})
    >>> run = sg.train(recipe)
    >>> run.record.cost.images, run.record.cost.steps, len(run.record.epochs)
    (90, 1, 1)
    """
    folder = folder_of_results(out, "train") if out is not None else None
    data = data or load_data(recipe.data)
    _check_images(data)
    place = pick_device(device)
    recipe = settled(recipe, data, place)
    trainer = Trainer(recipe, data, place)
    if folder is not None:
        _open(trainer, folder, resume)
    elif resume:
        raise UserError("train: resume needs the folder of the run (out=...)")
    with ctrl_c() as stopped:
        while not trainer.ended:
            for report in trainer.epoch(stopped):
                if progress:
                    progress(report)
                if stop is not None and stop.is_set():
                    stopped.set()
                if folder is not None and save_every and trainer.at.batch % save_every == 0:
                    _save(trainer, folder)
                if stopped.is_set():
                    if folder is None:
                        raise Interrupted("training stopped; it had no folder to be kept in")
                    _save(trainer, folder)
                    raise Interrupted(f"training stopped and kept in {folder}; go on with --resume")
            if folder is not None:
                _save(trainer, folder)
    trainer.finish()
    record = training_record(trainer)
    if folder is not None:
        digest = save_weights(folder / WEIGHTS, trainer.net, recipe, data)
        record = replace(record, weights=digest)
        record.write(folder / RECORD)
        (folder / STATE).unlink(missing_ok=True)
    return Run(trainer.net.eval(), folder, record)


def _open(trainer: Trainer, folder: Path, resume: bool | Literal["anywhere"]) -> None:
    """Resume the training in a folder, or begin it there."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot write {folder}: it is not a folder")
    remove_unfinished(folder)
    if (folder / RECORD).exists():
        (folder / STATE).unlink(missing_ok=True)  # what a run that was killed at its very end has left
        raise UserError(
            f"{folder} holds a finished run; choose another folder"
            + (" (nothing is left to resume)" if resume else "")
        )
    if resume and (folder / STATE).exists():
        needed = None if resume == "anywhere" else trainer.conditions
        trainer.at, kept = load_state(
            folder, trainer.net, trainer.optimizer, trainer.recipe, needed, trainer.per_epoch
        )
        _restore_hooks(trainer, kept, folder)
    elif not resume and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; go on with --resume or choose another folder")
    else:
        _save(trainer, folder)  # find out now, not after an epoch, that it cannot be written


def _restore_hooks(trainer: Trainer, kept: Mapping[str, Tensor], folder: Path) -> None:
    """Give the defenses their state back; UserError if it is not theirs."""
    for k, hook in enumerate(trainer.hooks):
        prefix, defense = f"{k}.", type(trainer.recipe.defenses[k]).__name__
        own = {
            name.removeprefix(prefix): value.to(trainer.device)
            for name, value in kept.items()
            if name.startswith(prefix)
        }
        try:
            hook.restore(own)
        except (KeyError, ValueError, RuntimeError, TypeError, IndexError) as error:
            raise UserError(f"{folder / STATE} is damaged: its state of {defense} does not fit") from error


def _save(trainer: Trainer, folder: Path) -> None:
    """Write a checkpoint."""
    kept = {
        f"{k}.{name}": value for k, hook in enumerate(trainer.hooks) for name, value in hook.state().items()
    }
    save_state(folder, trainer.net, trainer.optimizer, trainer.at, trainer.recipe, trainer.conditions, kept)
