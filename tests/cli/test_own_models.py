"""A user's own network, weights and images on the command line, end to end."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.cli.main import main
from spikeguard.cli.target import find
from spikeguard.cli.weights import put_own_weights
from spikeguard.records.schema import AttackRecord, AuditRecord

MODULE = """
import torch
from torch import nn

def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 8), nn.ReLU(), nn.Linear(8, 3))
"""


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of a network, its weights and nine images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_module_of_test.py").write_text(MODULE)
    net = network()
    save_file(net.state_dict(), "w.safetensors")
    x = np.random.default_rng(0).random((9, 1, 5, 5), np.float32)
    y = net(torch.from_numpy(x)).argmax(1).numpy()
    (tmp_path / "images").mkdir()
    np.save("images/x.npy", x)
    np.save("images/y.npy", y)
    return tmp_path


TARGET = ["own_module_of_test:net", "--weights", "w.safetensors", "--data-dir", "images"]


def test_attack_and_verify_with_weights_and_images_of_ones_own(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["attack", *TARGET, "--steps", "3", "--eps", "0.2", "--out", "a.json"]) == 0
    record = AttackRecord.read(project / "a.json")
    assert record.clean.value == 1.0  # by these weights; the factory's own are others
    assert (record.images, record.origin.data) == (9, str(project / "images"))
    assert record.origin.weights == str(project / "w.safetensors")
    assert main(["verify", "a.json"]) == 0
    capsys.readouterr()
    np.save("images/y.npy", 2 - np.load("images/y.npy"))
    assert main(["verify", "a.json"]) == 1
    assert "the images or labels are not those of the record" in capsys.readouterr().out


def test_a_network_that_sg_save_wrote_is_attacked_and_verified(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its module lies in the current folder; what it was trained on has to be named."""
    Path("own_saved_of_test.py").write_text(MODULE.replace("def net():", "def net() -> nn.Module:"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(project)
        sg.save(network(), "own.safetensors", factory="own_saved_of_test:net")
    del sys.modules["own_saved_of_test"]
    attack = ["attack", "own.safetensors", "--steps", "3", "--eps", "0.2", "--out", "s.json"]
    assert main(attack) == 2
    assert "own.safetensors does not say what it was trained on" in capsys.readouterr().err
    assert main([*attack, "--weights", "w.safetensors", "--data-dir", "images"]) == 2
    assert "has weights of its own" in capsys.readouterr().err
    assert main([*attack, "--data-dir", "images"]) == 0
    record = AttackRecord.read(project / "s.json")
    assert (record.clean.value, record.origin.target, record.origin.recipe) == (1.0, "own.safetensors", None)
    assert main(["verify", "s.json"]) == 0
    Path("own_saved_of_test.py").unlink()
    del sys.modules["own_saved_of_test"]
    capsys.readouterr()
    assert main([*attack[:-1], "t.json", "--data-dir", "images"]) == 2
    said = capsys.readouterr().err
    assert "cannot import 'own_saved_of_test'" in said
    assert "seen from this folder" in said


@pytest.mark.slow
def test_an_audit_of_it_is_checked_by_a_fresh_process(project: Path, short_suite: None) -> None:
    assert main(["audit", *TARGET, "--effort", "quick", "--eps", "0.2", "--out", "out"]) in (0, 1)
    record = AuditRecord.read(project / "out" / "audit.json")
    assert record.fresh_process is not None
    assert [line for line in record.fresh_process.wrong if "hash" not in line] == []  # of the short suite
    assert record.clean.value == 1.0


def test_a_run_on_images_of_ones_own_finds_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng, parts = np.random.default_rng(0), dict[str, np.ndarray]()
    for part, count in (("train", 40), ("test", 10)):
        parts |= {
            f"x_{part}": rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8),
            f"y_{part}": np.arange(count) % 2,
        }
    np.savez("mine.npz", **parts)  # type: ignore[arg-type]
    (tmp_path / "r.toml").write_text(
        'data = "mine.npz"\nepochs = 1\nbatch_size = 10\ntimesteps = 2\noptions = {width = 2}\n'
    )
    assert main(["train", "r.toml", "--out", "run"]) == 0
    other = tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    assert main(["attack", "../run", "--steps", "1", "--out", "a.json"]) == 0
    assert main(["verify", "a.json"]) == 0
    np.savez("../mine.npz", **{**parts, "y_test": 1 - parts["y_test"]})  # type: ignore[arg-type]
    capsys.readouterr()
    assert main(["attack", "../run", "--steps", "1", "--out", "b.json"]) == 2
    assert "holds other images than the network was trained on" in capsys.readouterr().err
    (tmp_path / "mine.npz").rename(tmp_path / "moved.npz")
    np.savez("../moved.npz", **parts)  # type: ignore[arg-type]
    found = find("../run", None, None, "../moved.npz", None)
    assert found.origin.data == str(tmp_path / "moved.npz")


def saved(held: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.save(held, folder / "w.pt")
        return folder / "w.pt"

    return make


class Code:
    """What a pickle of a whole network holds: code."""


@pytest.mark.parametrize("inside", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_torch_are_taken_where_they_are_tensors(
    tmp_path: Path, inside: str | None, prefix: str
) -> None:
    tensors = {prefix + name: t for name, t in network().state_dict().items()}
    path = saved(tensors if inside is None else {inside: tensors, "epoch": 3})(tmp_path)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(25, 8), nn.ReLU(), nn.Linear(8, 3))
    put_own_weights(net, path)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in network().state_dict().items())


def text(folder: Path) -> Path:
    (folder / "w.safetensors").write_bytes(b"no weights")
    return folder / "w.safetensors"


TENSORS: dict[str, Tensor] = network().state_dict()
WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing file": (lambda f: f / "w.pt", "no file of weights"),
    "no safetensors": (text, "is damaged or no safetensors file"),
    "a whole network": (saved(network()), "code of a file is never run"),
    "own class": (saved({"a": Code()}), "code of a file is never run"),
    "a list": (saved([1, 2]), "must hold a state dict"),
    "one missing": (saved({k: v for k, v in TENSORS.items() if k != "1.bias"}), "it has no 1.bias"),
    "one too many": (saved({**TENSORS, "9.bias": torch.zeros(1)}), "it has 9.bias"),
    "another shape": (saved({**TENSORS, "1.bias": torch.zeros(1)}), "1.bias has shape (1,), expected (8,)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_weights_are_named_in_one_line(tmp_path: Path, name: str) -> None:
    make, words = WRONG[name]
    with pytest.raises(sg.UserError) as error:
        put_own_weights(network(), make(tmp_path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_fit_a_wrapped_network_and_leave_sinabs_its_state(tmp_path: Path) -> None:
    pytest.importorskip("sinabs")
    from sinabs.layers import LIF

    net, fresh = (nn.Sequential(nn.Flatten(2), nn.Linear(25, 3), LIF(tau_mem=5.0)) for _ in range(2))
    net(torch.rand(4, 2, 5, 5))
    path = saved(net.state_dict())(tmp_path)
    model = sg.wrap(fresh, timesteps=3, layout="batch_first", sample=torch.rand(8, 5, 5))
    put_own_weights(model, path)
    assert torch.equal(fresh.state_dict()["1.weight"], net.state_dict()["1.weight"])


def test_a_run_has_weights_of_its_own(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "run").mkdir()
    assert main(["attack", "run", "--weights", "w.safetensors"]) == 2
    assert "--weights is for a package.module:factory" in json.dumps(capsys.readouterr().err)
