"""TGO, adversarial training, recipes, and runs that are stopped, killed, resumed and refused."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import little_recipe
from narrow import as_a, present, wrong
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.data.images import Dataset
from spikeguard.defenses import Defense
from spikeguard.errors import Interrupted, UserError
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import spiking
from spikeguard.records.files import read_json
from spikeguard.records.plain import Json, plain
from spikeguard.records.training import TrainingRecord
from spikeguard.training import trainer
from spikeguard.training.builder import make_network
from spikeguard.training.checkpoint import (
    METRICS,
    RECORD,
    STATE,
    WEIGHTS,
    Position,
    load_tensors,
    save_tensors,
)
from spikeguard.training.loop import train
from spikeguard.training.objective import task_loss
from spikeguard.training.recipe import Recipe
from spikeguard.training.trainer import Report


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_can_be_loaded_and_gives_the_same_logits(little_data: Dataset, tmp_path: Path) -> None:
    run = train(little_recipe(defenses=(sg.TGO(),)), tmp_path / "r", data=little_data)
    x = little_data.test.pixels()
    for target in (tmp_path / "r", tmp_path / "r" / WEIGHTS):
        net = sg.load(target)
        assert torch.equal(net(x), run.net(x))
        assert all(layer.noise == sg.Noise(0.1) for layer in spiking(net).values())
    record = read_json(tmp_path / "r" / RECORD)
    assert TrainingRecord.read(tmp_path / "r" / RECORD) == run.record
    assert len((tmp_path / "r" / METRICS).read_text().splitlines()) == 2
    assert not (tmp_path / "r" / STATE).exists()
    assert record["conditions"]["threads"] == 1


@pytest.mark.parametrize(
    "defenses",
    [(), (sg.AT(steps=1), sg.TGO(sees="both")), pytest.param((sg.TGO(),), marks=pytest.mark.compiled)],
    ids=["none", "at+tgo", "tgo, compiled"],
)
def test_a_stopped_run_resumes_to_the_same_bits(
    little_data: Dataset, tmp_path: Path, defenses: tuple[Defense, ...]
) -> None:
    recipe = little_recipe(
        defenses=defenses,
        options={"width": 4},
        neuron=sg.Neuron(kind="plif", decay=0.5, learn_threshold=True),
    )
    whole = train(recipe, tmp_path / "whole", data=little_data)
    for stop_at in (3, 12):  # inside the first epoch, then inside the second

        def stop(report: Report, stop_at: int = stop_at) -> None:
            if report.step == stop_at:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(Interrupted, match="go on with --resume"):
            train(recipe, tmp_path / "broken", resume=stop_at > 3, data=little_data, progress=stop)
    resumed = train(recipe, tmp_path / "broken", resume=True, data=little_data)
    assert same(weights(whole.net), weights(resumed.net))
    rows, again = ([replace(row, seconds=0.0) for row in run.record.epochs] for run in (whole, resumed))
    assert rows == again


def test_the_record_is_also_given_as_in_version_0_1(little_data: Dataset) -> None:
    run = train(little_recipe(epochs=1, defenses=(sg.TGO(),), validation=0.2), data=little_data)
    with pytest.warns(DeprecationWarning, match=r"use Run\.record"):
        values = run.metrics
    (row,) = as_a(list, values["epochs"])
    measured = as_a(dict, run.record.epochs[0].measured["near_threshold"])
    assert row["near_threshold"].keys() == measured.keys()
    assert as_a(dict, values["cost"])["steps"] == run.record.cost.steps
    assert TrainingRecord.from_json({**values, "schema": 1}) == run.record


def test_progress_of_version_0_1_and_of_today_is_read() -> None:
    row: dict[str, Json] = {
        "epoch": 1,
        "loss": 2.0,
        "task_loss": 1.5,
        "penalty": 0.5,
        "train_accuracy": 0.25,
        "seconds": 1.0,
    }
    old: dict[str, Json] = {"epoch": 1, "batch": 3, "seconds": 1.0, "sums": {"loss": 6.0}}
    position = Position.of({**old, "rows": [{**row, "near_threshold": {"fire": 0.125}}]}, "state")
    assert position.rows[0].measured == {"near_threshold": {"fire": 0.125}}
    assert (position.epoch, position.batch, position.sums) == (1, 3, {"loss": 6.0})
    assert Position.of(plain(position), "state") == position
    with pytest.raises(UserError, match="state = None must be a table"):
        Position.of(None, "state")


KILLED = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from conftest import halved, little_recipe
from spikeguard.data.images import Dataset
from spikeguard.data.sources import load_data
from spikeguard.training.loop import train
import spikeguard as sg
data = load_data("embedded")
train_part, test_part = halved(data.train.balanced(500)), halved(data.test.balanced(100))
little = Dataset("little", train_part, test_part, data.classes, data.mean, data.std)
tell = lambda report: print(report.step, flush=True)
recipe = little_recipe(defenses=(sg.TGO(),), epochs=4)
train(recipe, {out!r}, resume=True, data=little, progress=tell, save_every=3)
"""


@pytest.mark.slow
# the killed process compiles what is worth it: the unbroken run has to take the same path
@pytest.mark.compiled
def test_a_run_killed_at_random_steps_resumes_to_the_same_bits(little_data: Dataset, tmp_path: Path) -> None:
    whole = train(little_recipe(defenses=(sg.TGO(),), epochs=4), data=little_data)
    code = KILLED.format(tests=str(Path(__file__).parents[1]), out=str(tmp_path / "k"))
    steps = torch.randint(1, 12, (3,), generator=torch.Generator().manual_seed(0)).tolist()
    for kill_after in steps:
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            for count, _ in enumerate(present(process.stdout), 1):
                if count >= kill_after:
                    process.kill()
                    break
            assert process.wait(60) == -signal.SIGKILL, "it ended before it could be killed"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)
    assert same(weights(whole.net), load_tensors(tmp_path / "k" / WEIGHTS)[0])


def test_resuming_under_other_conditions_is_refused(little_data: Dataset, tmp_path: Path) -> None:
    def stop(report: Report) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(little_recipe(), tmp_path / "r", data=little_data, progress=stop)
    with pytest.raises(UserError, match="resume with the same"):
        train(little_recipe(lr=0.2), tmp_path / "r", resume=True, data=little_data)
    torch.set_num_threads(2)
    with pytest.raises(UserError, match="threads = 1, now threads = 2"):
        train(little_recipe(), tmp_path / "r", resume=True, data=little_data)
    with pytest.raises(UserError, match="unfinished run"):
        sg.load(tmp_path / "r")
    with pytest.raises(UserError, match="was made with recipe"):
        train(little_recipe(lr=0.2), tmp_path / "r", resume="anywhere", data=little_data)
    run = train(little_recipe(), tmp_path / "r", resume="anywhere", data=little_data)
    assert len(run.record.epochs) == 2


def test_a_state_of_an_older_version_lacks_newer_fields_and_resumes(
    little_data: Dataset, tmp_path: Path
) -> None:
    def stop(report: Report) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(little_recipe(), tmp_path / "r", data=little_data, progress=stop)
    tensors, metadata = load_tensors(tmp_path / "r" / STATE)
    del wrong(metadata)["conditions"]["recipe"]["label_smoothing"]
    save_tensors(tmp_path / "r" / STATE, tensors, metadata)
    run = train(little_recipe(), tmp_path / "r", resume=True, data=little_data)
    assert same(weights(run.net), weights(train(little_recipe(), data=little_data).net))


def test_an_existing_run_is_not_overwritten(little_data: Dataset, tmp_path: Path) -> None:
    train(little_recipe(epochs=1), tmp_path / "r", data=little_data)
    before = (tmp_path / "r" / WEIGHTS).read_bytes()
    for resume in (False, True):
        with pytest.raises(UserError, match="finished run"):
            train(little_recipe(), tmp_path / "r", resume=resume, data=little_data)
    assert (tmp_path / "r" / WEIGHTS).read_bytes() == before


def test_a_checkpoint_of_another_network_is_refused(little_data: Dataset, tmp_path: Path) -> None:
    train(little_recipe(epochs=1), tmp_path / "a", data=little_data)
    tensors, metadata = load_tensors(tmp_path / "a" / WEIGHTS)
    from spikeguard.training.checkpoint import save_tensors

    as_a(dict, metadata["recipe"])["options"] = {"width": 8}
    save_tensors(tmp_path / "b.safetensors", tensors, metadata)
    with pytest.raises(UserError, match="checkpoint of another network"):
        sg.load(tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes((tmp_path / "a" / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        sg.load(tmp_path / "c.safetensors")
    with pytest.raises(UserError, match="neither a run folder nor a weights file"):
        sg.load("no-such-thing")


def test_a_loss_that_is_not_finite_stops_with_one_line_and_no_result(
    little_data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"the loss is (nan|inf)"):
        train(little_recipe(lr=1e30, warmup=0.0, epochs=4), tmp_path / "r", data=little_data)
    assert not (tmp_path / "r" / WEIGHTS).exists()


def test_weights_that_are_not_finite_are_never_saved(
    little_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spikes of a network full of NaN are zeros, so its loss stays finite.

    The weights themselves are looked at.
    """

    def spoil(report: Report) -> None:
        with torch.no_grad():
            spoiled[0].fill_(float("nan"))

    spoiled: list[nn.Parameter] = []

    def made(recipe: Recipe, data: Dataset) -> Classifier:
        net = make_network(recipe, data)
        spoiled.append(next(net.parameters()))
        return net

    monkeypatch.setattr(trainer, "make_network", made)
    with pytest.raises(UserError, match="not finite"):
        train(little_recipe(epochs=1), tmp_path / "r", data=little_data, progress=spoil)
    assert not (tmp_path / "r" / WEIGHTS).exists()


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spikeguard.records import files

    target = tmp_path / "r.json"
    target.write_text("{}")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        files.write_json(target, {"a": 1})
    assert target.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [target]


def test_an_unwritable_folder_is_found_out_before_the_first_epoch(
    little_data: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    begun = time.perf_counter()
    with pytest.raises(UserError, match="cannot write"):
        train(little_recipe(epochs=100), tmp_path / "file" / "r", data=little_data)
    assert time.perf_counter() - begun < 5


def test_tet_is_its_formula() -> None:
    logits, y = (
        torch.randn(3, 5, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 3, 9, 9, 1]),
    )
    total = 0.0
    for z in logits:
        for row, label in zip(z.tolist(), y.tolist(), strict=True):
            entropy = math.log(sum(math.exp(v) for v in row)) - row[label]
            total += 0.999 * entropy + 0.001 * sum((v - 1) ** 2 for v in row) / 10
    assert float(task_loss("tet", logits, y)) == pytest.approx(total / 15)


@pytest.mark.parametrize(
    ("defenses", "held", "told"),
    [((sg.AT(steps=1),), 0.0, True), ((sg.AT(steps=1),), 1.0, False), ((), 0.0, False)],
)
def test_adversaries_that_are_easier_than_clean_images_are_told(
    little_data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    defenses: tuple[Defense, ...],
    held: float,
    told: bool,
) -> None:
    monkeypatch.setattr(trainer, "accuracy", lambda net, images: held)
    with caplog.at_level("WARNING", "spikeguard"):
        train(little_recipe(defenses=defenses, validation=0.2), data=little_data)
    assert ("catastrophic overfitting" in caplog.text) == told


def test_training_draws_nothing_from_the_global_generator(little_data: Dataset) -> None:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(
            weights(train(little_recipe(defenses=(sg.TGO(), sg.AT(steps=1)), epochs=1), data=little_data).net)
        )
    assert same(*states)
