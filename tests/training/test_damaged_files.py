"""Weights and states on disk: a flipped bit is noticed, what cannot be a state is refused before use."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import little_recipe

from spikeguard.data.images import Dataset
from spikeguard.defenses import EMA
from spikeguard.errors import Interrupted, UserError
from spikeguard.records.training import TrainingRecord
from spikeguard.training.checkpoint import (
    METRICS,
    RECORD,
    STATE,
    WEIGHTS,
    load_tensors,
    put_weights,
    save_tensors,
)
from spikeguard.training.load import load
from spikeguard.training.loop import train

RECIPE = {"epochs": 2, "train_images": 200, "options": {"width": 2}, "defenses": (EMA(),)}


class After:
    """A stop that is set once it was asked so often."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, little_data: Dataset) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(little_recipe(**RECIPE), folder, data=little_data)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, little_data: Dataset) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Interrupted):
        train(little_recipe(**RECIPE), folder, data=little_data, stop=After(4))
    return folder


def test_one_flipped_bit_of_the_weights_is_noticed(finished: Path, tmp_path: Path) -> None:
    whole = (finished / WEIGHTS).read_bytes()
    path = tmp_path / WEIGHTS
    path.write_bytes(whole)
    load(path)
    for at in (len(whole) - 1, len(whole) - 1000, len(whole) // 2, 20, 200):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError) as error:
            load(path)
        assert "\n" not in str(error.value)


def test_a_run_folder_does_not_take_the_weights_of_another_run(
    finished: Path, tmp_path: Path, little_data: Dataset
) -> None:
    other = tmp_path / "other"
    train(little_recipe(**{**RECIPE, "epochs": 1, "seed": 1}), other, data=little_data)
    record = TrainingRecord.read(other / RECORD)
    assert record.weights == load_tensors(other / WEIGHTS)[1]["digest"]
    shutil.copy(finished / WEIGHTS, other / WEIGHTS)
    with pytest.raises(UserError, match="weights of another run"):
        load(other)
    load(finished)


def test_weights_of_version_0_1_are_read_without_a_digest(finished: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors, metadata = load_tensors(finished / WEIGHTS)
    texts = {k: json.dumps(v) for k, v in metadata.items() if k != "digest"}
    save_file(tensors, tmp_path / WEIGHTS, texts)
    load(tmp_path)
    shutil.copy(finished / RECORD, tmp_path / RECORD)
    with pytest.raises(UserError, match="weights of another run"):
        load(tmp_path)


def test_weights_that_are_no_numbers_are_refused() -> None:
    net = torch.nn.Linear(2, 2, dtype=torch.float32)
    held = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    put_weights(net, held, Path("w"))
    held["weight"][1, 0] = torch.nan
    with pytest.raises(UserError, match="w is damaged: weight holds NaN"):
        put_weights(net, held, Path("w"))


Change = Callable[[Any], Any]
"""Of a value in the metadata, or of all tensors."""


def edited(path: Path, **changes: Change) -> None:
    """Write a state with other metadata and other tensors."""
    tensors, metadata = load_tensors(path)
    for name, value in changes.items():
        if name in metadata:
            metadata[name] = value(metadata[name])
        else:
            tensors = value(tensors)
    save_tensors(path, tensors, metadata)


def progress(**changes: object) -> dict[str, Change]:
    return {"progress": lambda v: {**v, **changes}}


def of_tensors(change: Change) -> dict[str, Change]:
    return {"tensors": change}


EDITS = {
    "epoch 99": progress(epoch=99),
    "epoch -1": progress(epoch=-1),
    "batch 10**9": progress(batch=10**9),
    "batch as text": progress(batch="3"),
    "no rows": progress(epoch=1, rows=[]),
    "sums": progress(sums={}),
    "sums that are none": progress(sums={"loss": "a"}),
    "seconds": progress(seconds=-1.0),
    "progress as a list": {"progress": lambda v: [1]},
    "no conditions": {"conditions": lambda v: None},
    "conditions as text": {"conditions": lambda v: "x"},
    "another recipe": {"conditions": lambda v: {**v, "recipe": 3}},
    "no momentum": of_tensors(lambda t: {k: v for k, v in t.items() if not k.startswith("momentum.")}),
    "one momentum less": of_tensors(lambda t: {k: v for k, v in t.items() if k != "momentum.head.bias"}),
    "another shape": of_tensors(lambda t: {**t, "momentum.head.bias": torch.zeros(3)}),
    "momentum of none": of_tensors(lambda t: {**t, "momentum.nothing": torch.zeros(3)}),
    "another dtype": of_tensors(lambda t: {**t, "net.head.bias": t["net.head.bias"].double()}),
    "no state of the defense": of_tensors(
        lambda t: {k: v for k, v in t.items() if not k.startswith("hook.")}
    ),
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_a_state_that_cannot_be_is_refused_in_one_line(
    change: dict[str, Change], stopped: Path, tmp_path: Path, little_data: Dataset
) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    edited(folder / STATE, **change)
    with pytest.raises(UserError) as error:
        train(little_recipe(**RECIPE), folder, resume=True, data=little_data)
    assert "\n" not in str(error.value)


def test_one_flipped_bit_of_a_state_is_noticed(stopped: Path, tmp_path: Path, little_data: Dataset) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    whole = (folder / STATE).read_bytes()
    (folder / STATE).write_bytes(whole[:-40] + bytes([whole[-40] ^ 4]) + whole[-39:])
    with pytest.raises(UserError, match="damaged"):
        train(little_recipe(**RECIPE), folder, resume=True, data=little_data)


def test_a_run_killed_in_its_last_step_is_cleaned_when_it_is_resumed(
    finished: Path, stopped: Path, tmp_path: Path, little_data: Dataset
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    shutil.copy(stopped / STATE, folder / STATE)
    (folder / ".weights.safetensors.v50o7yd0").write_text("half")
    with pytest.raises(UserError, match="nothing is left to resume"):
        train(little_recipe(**RECIPE), folder, resume=True, data=little_data)
    assert sorted(p.name for p in folder.iterdir()) == sorted([RECORD, WEIGHTS, METRICS])
