"""The record of a finished training."""

from __future__ import annotations

from spikeguard.records.build import frozen
from spikeguard.records.plain import plain
from spikeguard.records.training import TrainingCost, TrainingRecord
from spikeguard.runtime.machine import machine
from spikeguard.training.provenance import origins
from spikeguard.training.trainer import Trainer


def training_record(trainer: Trainer) -> TrainingRecord:
    """What is written of a training after its last step."""
    return TrainingRecord(
        recipe=frozen(trainer.recipe.values()),
        conditions=trainer.conditions,
        machine=machine(),
        cost=TrainingCost(
            seconds=round(trainer.at.seconds, 2),
            steps=trainer.at.epoch * trainer.per_epoch,
            images=len(trainer.images),
        ),
        parameters=sum(p.numel() for p in trainer.net.parameters()),
        epochs=trainer.at.rows,
        kept_accuracy=trainer.kept_accuracy,
        plugins=origins(trainer.recipe),
    )


def metrics(record: TrainingRecord) -> dict[str, object]:
    """The record in the keys of version 0.1, in which a row held what defenses measure beside the rest."""
    values: dict[str, object] = {**record.to_json()}
    values["epochs"] = [{**plain(row), **row.measured} for row in record.epochs]
    if record.kept_accuracy is not None:
        values["kept"] = {"validation_accuracy": values.pop("kept_accuracy")}
    return values
