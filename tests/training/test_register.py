"""Things of the user's own: registered by a call or an installed plugin, they work as the package's own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.attacks import Attacked
from spikeguard.cli.main import main
from spikeguard.data import DATA, Dataset, Images
from spikeguard.defenses import Defense
from spikeguard.errors import SpikeguardWarning, UserError
from spikeguard.models import Model
from spikeguard.neurons import Neuron
from spikeguard.records.training import TrainingRecord
from spikeguard.registry import Plugins, Registry, plugins
from spikeguard.surrogates import Surrogate, Triangle
from spikeguard.threat import Threat
from spikeguard.training.load import load_with_recipe
from spikeguard.training.register import REGISTRIES

PLUGIN = '''
from dataclasses import dataclass
import torch
from torch import nn
import spikeguard as sg

@sg.register
@dataclass(frozen=True)
class Flat(sg.surrogates.Surrogate):
    """One height near the threshold."""
    width: float = 1.0
    """Where it is not 0."""
    def derivative(self, u, sharpness=None):
        return (u.abs() < self.width / 2).to(u.dtype) / self.width
    def soft_step(self, u):
        return (u / self.width + 0.5).clamp(0, 1)

@sg.register
@dataclass(frozen=True)
class Shrink(sg.defenses.Defense):
    """Weights become smaller after every step."""
    share: float = 0.25
    """Part of a weight that is lost."""
    def __post_init__(self):
        self._need(0 <= self.share < 1, "share", "in [0, 1)")

@sg.register
def nudge(model, x, y, threat, *, steps: int = 2):
    """FGSM by another name."""
    return sg.fgsm(model, x, y, threat)

class Body(nn.Module):
    def __init__(self, pixels, neuron, wide):
        super().__init__()
        self.line, self.fire = nn.Linear(pixels, wide), sg.neurons.Spiking(neuron)
    def forward(self, x, timesteps):
        return self.fire(self.line(x.flatten(2)), timesteps)

@sg.register
def flat(in_shape, neuron, wide: int = 8, kind: str = "plain"):
    """Two layers."""
    return Body(in_shape[0] * in_shape[1] * in_shape[2], neuron, wide), wide

@sg.register
def stripes(folder):
    """Two classes of stripes."""
    y = torch.arange(40) % 2
    x = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    x[y == 0, :, ::2], x[y == 1, :, :, ::2] = 255, 255
    images = sg.data.Images.of(x, y)
    return sg.data.Dataset("stripes", images, images, ("rows", "columns"), (0.5,), (0.5,))
'''
RECIPE = """
data = "stripes"
network = "flat"
epochs = 1
batch_size = 8
timesteps = 2
[neuron.surrogate.flat]
width = 2.0
"""


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    for registry in REGISTRIES:
        registry.added.clear()


def install(folder: Path, name: str, text: str) -> None:
    """A package as pip leaves it: a module, and a dist-info with an entry point."""
    (folder / f"{name}.py").write_text(text)
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[spikeguard.plugins]\n{name} = {name}\n")


@pytest.fixture
def plugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that looks installed from now on, and the current folder beside it."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(plugins, "begun", False)
    monkeypatch.setattr(plugins, "done", False)
    return folder


def test_a_plugin_works_where_the_own_things_do_and_a_record_without_it_is_refused(
    plugged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(plugged, "stripy", PLUGIN)
    Path("mine.toml").write_text(RECIPE)
    flags = ["--defenses.shrink.share", "1/8", "--options.wide", "6", "--out", "run"]
    assert main(["train", "mine.toml", *flags]) == 0, capsys.readouterr().err
    record = TrainingRecord.read(Path("run/run.json"))
    assert set(record.plugins) == {"surrogate flat", "defense shrink", "network flat", "data set stripes"}
    assert set(record.plugins.values()) == {"stripy 1.2"}
    net, recipe = load_with_recipe("run")
    assert type(recipe.defenses[0]).__name__ == "Shrink"
    assert type(net.body).__name__ == "Body"
    assert main(["attack", "run", "--attack", "nudge", "--images", "4", "--steps", "3"]) in (0, 1)
    assert "nudge steps=3" in capsys.readouterr().out
    assert main(["explain", "shrink"]) == 0
    assert capsys.readouterr().out == (
        "shrink (defense, of stripy 1.2)\n\nWeights become smaller after every step.\n\n"
        "  share = 0.25: Part of a weight that is lost.\n"
    )
    for registry in REGISTRIES:  # as in a process where it is not installed
        registry.added.clear()
    assert main(["attack", "run"]) == 2
    assert capsys.readouterr().err == (
        "spikeguard: run/weights.safetensors needs the surrogate 'flat' of stripy 1.2, which is not "
        "registered: install it\n"
    )


def test_importing_spikeguard_loads_no_plugin(tmp_path: Path) -> None:
    install(tmp_path, "loud", "raise SystemError('never at import')")
    code = "import spikeguard as sg, spikeguard.cli.main, spikeguard.training.register\n"
    code += "assert sg.defenses.DEFENSES['at'] and 'pgd' in sg.attacks.ATTACKS and sg.load_data('embedded')"
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=env, check=True)


def test_a_plugin_that_fails_is_named_in_one_line_and_others_work(
    plugged: Path,
) -> None:
    install(plugged, "aa_broken", "import no_such_module_of_anyone")
    install(plugged, "bb_works", "import spikeguard as sg\n@sg.register\ndef bb(folder): ...\n")
    with pytest.warns(SpikeguardWarning) as caught:
        assert "bb" in DATA
    (text,) = [str(w.message) for w in caught]
    assert text.startswith("plugin 'aa_broken' of aa_broken 1.2 is left out: ModuleNotFoundError")
    assert "\n" not in text
    assert DATA.sources["bb"] == "bb_works 1.2"


def test_plugins_are_loaded_once() -> None:
    one = Plugins()
    one.load()
    assert one.done
    one.lock = None  # type: ignore[assignment]  # a second load does not even take it
    one.load()


@dataclass(frozen=True)
class Mine(Defense):
    """Nothing at all."""

    much: float = 0.5
    """How much of it."""


@dataclass(frozen=True)
class Bent(Surrogate):
    """Too small a slope."""

    def derivative(self, u: Tensor, sharpness: Tensor | None = None) -> Tensor:
        return u[0]

    def soft_step(self, u: Tensor) -> Tensor:
        return u


@dataclass(frozen=True)
class Wide(Triangle):
    """A triangle of another name."""


class Loose(Defense):
    idea: ClassVar[str] = "no dataclass"


def body(in_shape: tuple[int, ...], neuron: Neuron, width: int = 2) -> object:
    return nn.Flatten(2)


def two(in_shape: tuple[int, ...], neuron: Neuron, width: int) -> object:
    return None


def attack(model: Model, x: Tensor, y: Tensor, threat: Threat, *, steps: int) -> Attacked:
    raise NotImplementedError


def placed(model: Model, x: Tensor, y: Tensor, threat: Threat, steps: int = 2) -> Attacked:
    raise NotImplementedError


def other(model: Model, images: Tensor) -> Tensor:
    return images


@pytest.mark.parametrize(
    ("thing", "name", "message"),
    [
        (3, None, "register: 3 must be a class of sg.surrogates.Surrogate or"),
        (int, None, "must be a class of"),
        (Loose, None, "Loose must be a frozen dataclass"),
        (Bent, None, "derivative\\(u\\) must be finite and of the shape of u"),
        (Mine, "at", "there is a defense 'at' of spikeguard; give another name="),
        (Mine, "two words", "name = 'two words' must be letters"),
        (two, None, "two: its setting 'width' must have a default"),
        (attack, None, "attack: its setting 'steps' must have a default"),
        (placed, None, "placed: its setting 'steps' must stand after a \\*"),
        (other, None, "register: other\\(model, images\\) must be"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(thing: object, name: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        sg.register(thing, name)
    assert "\n" not in str(error.value)


def test_the_same_thing_may_come_again_and_another_one_of_its_name_may_not() -> None:
    assert sg.register(Mine) is Mine
    sg.register(Mine)
    sg.register(Mine, "mine")
    with pytest.raises(UserError, match=r"there is a defense 'mine' of module .*test_register"):
        sg.register(dataclass(frozen=True)(type("Other", (Defense,), {})), "mine")
    recipe = sg.Recipe.of({"defenses": {"mine": {"much": "1/4"}}})
    assert recipe.defenses == (Mine(much=0.25),)
    assert sg.Recipe.of(recipe.values()) == recipe
    assert sg.defenses.Mine is Mine


def test_a_surrogate_is_chosen_by_name_and_its_gradient_is_taken() -> None:
    sg.register(Wide)
    recipe = sg.Recipe.of({"neuron": {"surrogate": {"wide": {"width": 2.0}}}})
    assert recipe.neuron.surrogate == Wide(2.0)
    current = torch.zeros(1, 1, 1, requires_grad=True)
    sg.neurons.Spiking(recipe.neuron)(current).sum().backward()
    assert current.grad is not None
    assert float(current.grad) == pytest.approx(0.25)


def test_a_network_that_returns_something_else_is_refused() -> None:
    sg.register(body)
    with pytest.raises(UserError, match=r"body returned Flatten.* must return a module and its number"):
        sg.build("body", classes=2, in_shape=(1, 8, 8))
    with pytest.raises(UserError, match="build: body: width = 'x' must be a whole number"):
        sg.build("body", classes=2, in_shape=(1, 8, 8), width="x")


def dataset(y: list[int], shape: tuple[int, ...] = (4, 1, 8, 8), dtype: torch.dtype = torch.uint8) -> Dataset:
    images = Images.of(torch.zeros(shape, dtype=dtype), torch.tensor(y))
    return Dataset("toy", images, images, ("a", "b"), (0.5,), (0.5,))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (dataset([0, 1, 2, 0]), "labels go from 0 to 2, must lie in"),
        (dataset([0, 1]), "y and index must be int64 \\[4\\]"),
        (dataset([0, 1, 0, 1], (4, 8, 8)), "must be uint8 \\[N, C, H, W\\]"),
        (dataset([0, 1, 0, 1], dtype=torch.float32), "must be uint8"),
    ],
)
def test_a_data_set_that_no_training_could_use_is_refused(made: Dataset, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sg.register(made)


def test_a_data_set_of_ones_own_has_the_name_it_is_registered_under() -> None:
    sg.register(dataset([0, 1, 0, 1]), "mine")
    assert sg.load_data("mine").name == "mine"
    with pytest.raises(UserError, match="did you mean 'mine'"):
        sg.load_data("mines")

    @sg.register
    def nothing(folder: Path | None) -> None:
        return None

    with pytest.raises(UserError, match="its function returned None, must return a Dataset"):
        sg.load_data("nothing")


def test_a_registry_lists_its_own_things_first() -> None:
    names: Registry[int] = Registry("number", {"one": 1})
    names.add("two", 2, 2)
    assert list(names) == ["one", "two"]
    assert (len(names), names["two"], "three" in names) == (2, 2, False)
