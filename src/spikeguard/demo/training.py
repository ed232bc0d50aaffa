"""The networks of the demo, and what a running demo shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from spikeguard.data.images import Dataset, Images
from spikeguard.networks.classifier import Classifier
from spikeguard.records.studies import DemoSettings
from spikeguard.records.training import TrainingRecord
from spikeguard.runtime.progress import Progress
from spikeguard.training.builder import pick_device
from spikeguard.training.checkpoint import RECORD
from spikeguard.training.load import load_classifier
from spikeguard.training.loop import train
from spikeguard.training.recipes import recipe
from spikeguard.training.trainer import Report


@dataclass(frozen=True)
class Demo:
    """A running demo: settings, folder, images, and what shows its progress."""

    settings: DemoSettings
    out: Path
    data: Dataset
    test: Images
    progress: Progress


@dataclass(frozen=True)
class TrainedNetwork:
    """A network of the demo and what its training took; ``gain``: its batch-norm gains before training."""

    net: Classifier
    role: str
    label: str
    training: TrainingRecord
    gain: float = 1.0


def train_network(demo: Demo, role: str, label: str, gain: float = 1.0) -> TrainedNetwork:
    """The network of the recipe of that role, trained now unless an earlier demo has done it.

    ``gain``: the gains of its batch norms before training.
    """
    folder = demo.out / "runs" / role
    if not (folder / RECORD).exists():

        def progress(report: Report) -> None:
            demo.progress(f"training {label}", report.step, report.steps)

        chosen = recipe("vanilla" if role == "control" else role)
        if gain != 1.0:
            chosen = replace(chosen, options={**chosen.options, "gain": gain})
        chosen = replace(chosen, seed=demo.settings.seed, epochs=demo.settings.epochs)
        train(chosen, folder, resume=folder.exists(), data=demo.data, progress=progress)
    training = TrainingRecord.read(folder / RECORD)
    return TrainedNetwork(load_classifier(folder, str(pick_device(None))), role, label, training, gain)
