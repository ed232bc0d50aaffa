"""``spikeguard export RUN --nir FILE``: a trained network goes to other tools."""

import json
from pathlib import Path

import pytest
import torch
from conftest import little_recipe

import spikeguard as sg
from spikeguard.cli.main import main
from spikeguard.data.images import Dataset
from spikeguard.defenses import DLIF, TGO, Defense
from spikeguard.interchange import from_nir
from spikeguard.training.builder import make_network
from spikeguard.training.checkpoint import WEIGHTS, save_weights
from spikeguard.training.load import load

pytest.importorskip("nir")


def run_folder(tmp_path: Path, data: Dataset, *defenses: Defense) -> str:
    """A folder as a training leaves it, without the training."""
    recipe = little_recipe(options={"width": 2}, defenses=defenses)
    save_weights(tmp_path / WEIGHTS, make_network(recipe, data), recipe, data)
    return str(tmp_path)


def test_a_guarded_network_is_written_as_a_graph(
    tmp_path: Path, little_data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = run_folder(tmp_path, little_data, TGO()), tmp_path / "net.nir"
    assert main(["export", run, "--nir", str(file), "--convention", "snntorch"]) == 0
    assert f"wrote {file} (NIR, convention snntorch)" in capsys.readouterr().out
    x = little_data.test.pixels()[:4]
    with torch.no_grad():
        torch.testing.assert_close(from_nir(file, reset="hard", timesteps=2)(x), load(run)(x))
    assert main(["export", run, "--nir", str(file), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"file": str(file), "convention": "euler", "timesteps": 2}


def test_what_cannot_be_written_ends_in_one_line(
    tmp_path: Path,
    little_data: Dataset,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run, file = run_folder(tmp_path, little_data, DLIF()), str(tmp_path / "net.nir")
    for arguments, words in (
        (["export", run, "--nir", file], "NIR cannot represent"),
        (["export", run, "--nir", file, "--convention", "snntorc"], "did you mean 'snntorch'"),
        (["export", run, run, "--nir", file], "takes one run"),
        (["export", run, "--convention", "euler"], "takes one run"),
        (["export", run, "--nir", file, "--out", "a.csv"], "takes one run"),
        (["export", "nowhere", "--nir", file], "no network 'nowhere'"),
    ):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert words in captured.err
        assert captured.err.count("\n") == 1
    sg.save(
        torch.nn.Linear(2, 2), "own.safetensors", factory="torch.nn:Linear", in_features=2, out_features=2
    )
    assert main(["export", "own.safetensors", "--nir", file]) == 2
    assert "sg.interchange.to_nir(net, path, in_shape=...)" in capsys.readouterr().err
    assert not Path(file).exists()
