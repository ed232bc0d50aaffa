"""Weights of published code: the same spikes and scores here, and what is said when they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from published import Fires, Published, RatVGG, RatWRN, SewResNet, TetResNet, TetVGG, randomized
from safetensors.torch import save_file
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.interchange import ImportedNetwork, from_nir, import_state, to_nir
from spikeguard.interchange.state_files import LARGEST
from spikeguard.networks.classifier import Classifier

NETWORKS: dict[str, tuple[Callable[[], Published], str, tuple[int, int, int]]] = {
    "rat-vgg": (RatVGG, "snn-rat/vgg11", (3, 8, 8)),
    "rat-wrn": (RatWRN, "snn-rat/wrn16", (3, 8, 8)),
    "tet-vgg": (lambda: TetVGG(pooled=True), "tet/vggsnn", (2, 16, 16)),
    "tet-vgg-strided": (lambda: TetVGG(pooled=False), "tet/vggsnn", (2, 16, 16)),
    "tet-resnet": (TetResNet, "tet/resnet19", (3, 8, 8)),
    "sew": (lambda: SewResNet(deep=False, contained=True), "sew/resnet-add", (3, 32, 32)),
    "sew-spikingjelly": (lambda: SewResNet(deep=False, contained=False), "sew/resnet-add", (3, 32, 32)),
    "sew-deep": (lambda: SewResNet(deep=True, contained=True), "sew/resnet-add", (3, 32, 32)),
}


@cache
def published(name: str) -> tuple[Published, str, tuple[int, int, int]]:
    make, layout, shape = NETWORKS[name]
    torch.manual_seed(4)
    return randomized(make()), layout, shape


def imported(net: Published, source: Any, layout: str, shape: Any = None) -> Classifier | ImportedNetwork:
    return import_state(source, layout, timesteps=net.steps, mean=(net.mean,), std=(net.std,), in_shape=shape)


def fired_there(net: Published, x: Tensor) -> list[Tensor]:
    """Spikes of the layers, sorted by how many they are: they need not be called in the same order."""
    layers = [m for m in net.modules() if isinstance(m, Fires)]
    for layer in layers:
        layer.fired.clear()
    net(x)
    return [spikes for layer in layers for spikes in layer.fired]


def fired_here(net: nn.Module, x: Tensor) -> list[Tensor]:
    with sg.tap(net) as t:
        net(x)
    return [(u >= 0).float() for u in t.potentials.values()]


def order(spikes: Tensor) -> tuple[float, ...]:
    weights = torch.linspace(1, 2, spikes.numel(), dtype=torch.float64)
    return (float(spikes.numel()), float((spikes.double().flatten() * weights).sum()))


@pytest.mark.parametrize("name", NETWORKS)
def test_imported_weights_give_the_same_spikes_and_scores(name: str) -> None:
    there, layout, shape = published(name)
    here = imported(there, there.state_dict(), layout, shape)
    x = torch.rand(3, *shape)
    with torch.no_grad():
        torch.testing.assert_close(here(x), there(x), rtol=1e-4, atol=1e-4)
        ours, theirs = (sorted(f, key=order) for f in (fired_here(here, x), fired_there(there, x)))
    assert len(ours) == len(theirs) > 4
    rates = [float(s.mean()) for s in ours]
    assert sum(0.005 < rate < 0.995 for rate in rates) > 0.8 * len(rates)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not here.training


def test_shapes_follow_from_the_weights_where_they_tell() -> None:
    for name in ("rat-vgg", "tet-vgg", "tet-vgg-strided"):
        there, layout, shape = published(name)
        assert imported(there, there.state_dict(), layout).in_shape == shape
    assert imported(
        published("rat-wrn")[0], published("rat-wrn")[0].state_dict(), "snn-rat/wrn16"
    ).in_shape == (
        3,
        32,
        32,
    )


def test_files_wrappers_and_what_lies_beside_the_weights(tmp_path: Path) -> None:
    there, layout, shape = published("tet-vgg")
    x, state = torch.rand(2, *shape), there.state_dict()
    wrapped = {f"module._orig_mod.{k}": v for k, v in state.items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.rand(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"state_dict": wrapped, "optimizer": optimizer, "epoch": 3}, tmp_path / "nested.pth")
    torch.save(state, tmp_path / "plain.pth")
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "plain.safetensors")
    with torch.no_grad():
        scores = there(x)
        for source in ("nested.pth", "plain.pth", "plain.safetensors"):
            torch.testing.assert_close(imported(there, tmp_path / source, layout)(x), scores)
            torch.testing.assert_close(imported(there, str(tmp_path / source), layout)(x), scores)
        torch.testing.assert_close(imported(there, {"model": {"net": wrapped}}, layout)(x), scores)


class Opened:
    """What a file must not run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("opened"),))


def refused(match: str) -> Any:
    return pytest.raises(sg.UserError, match=match)


def test_files_that_hold_more_than_weights_or_nothing_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = published("tet-vgg")[0]

    def read(source: Any) -> None:
        imported(there, source, "tet/vggsnn")

    torch.save({"state_dict": Opened()}, "pickled.pth")
    with refused("pickled.pth holds more than weights"):
        read("pickled.pth")
    assert not Path("opened").exists()
    Path("text.pth").write_text("no weights")
    Path("text.safetensors").write_text("no weights")
    for name in ("text.pth", "text.safetensors"):
        with refused(f"{name} (holds more than weights|is damaged)"):
            read(name)
    torch.save([1, 2], "list.pth")
    with refused("must be tensors by name"):
        read("list.pth")
    with refused("no tensors by name"):
        read({"epoch": 3})
    with refused("no file 'none.pth'"):
        read("none.pth")
    with Path("large.pth").open("wb") as file:
        file.truncate(LARGEST + 1)
    with refused("at most 4,294,967,296 are read"):
        read("large.pth")


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k != name}


def test_tensors_that_are_missing_left_over_or_misshapen_are_named() -> None:
    there, layout, shape = published("rat-wrn")
    state = dict(there.state_dict())

    def attempt(changed: dict[str, Any], match: str) -> None:
        with refused(match):
            imported(there, changed, layout, shape)

    attempt(without(state, "block2.1.conv1.weight"), "no tensor 'block2.1.conv1.weight'")
    attempt({**state, "extra.weight": torch.rand(2)}, "'extra.weight' has no place in this layout")
    attempt(without(state, "block1.0.convex.comb"), "no tensor 'block1.0.convex.comb'")
    attempt(without(state, "block2.0.convShortcut.weight"), "nothing for body.blocks.2.shortcut.0.weight")
    attempt({**state, "bn1.weight": torch.rand(3)}, "bn1: its tensors differ in length")
    attempt({**state, "fc.bias": torch.rand(3)}, "fc has 3 biases for 4 outputs")
    attempt({**state, "conv1.weight": torch.rand(16, 3, 5, 5)}, "body.stem.0.weight has shape")
    attempt({**state, "fc.bias": torch.full((4,), float("nan"))}, "fc.bias is .* finite floats")
    attempt({**state, "fc.bias": torch.rand(4, 1)}, "fc.bias is .* 1 dimensions")
    attempt(dict(RatWRN(blocks=3).state_dict()), "WRN-16 has 2 blocks a group, this network has 3")


def test_other_networks_of_the_same_code_are_refused_by_name() -> None:
    vgg = published("rat-vgg")[0]
    state = dict(vgg.state_dict())
    with refused("not VGG-11 of SNN-RAT"):
        imported(vgg, {**state, "layer5.0.weight": state["layer4.3.weight"]}, "snn-rat/vgg11")
    for layout in ("tet/resnet19", "sew/resnet-add"):
        with refused("no tensor 'conv1.weight'; is it of another layout"):
            imported(vgg, state, layout)
    wrn = published("rat-wrn")[0].state_dict()
    with refused("three groups of blocks, this network has .0, 0, 0"):
        imported(vgg, wrn, "tet/resnet19")
    with refused("four groups of blocks"):
        imported(vgg, wrn, "sew/resnet-add")
    sew = published("sew")[0]
    with refused("layer1.0.sn1.w: neurons that learn their decay"):
        imported(sew, {**sew.state_dict(), "layer1.0.sn1.w": torch.rand(1)}, "sew/resnet-add", (3, 32, 32))
    with refused("unknown layout 'snn-rat/vgg' .did you mean 'snn-rat/vgg11'"):
        imported(vgg, state, "snn-rat/vgg")


def test_two_names_of_one_tensor_must_agree() -> None:
    there, layout, shape = published("tet-resnet")
    state = dict(there.state_dict())
    name = "layer2.0.conv1_s.layer.module.weight"
    with refused("another name for layer2.0.conv1.weight differ"):
        imported(there, {**state, name: 2 * state[name]}, layout, shape)


def test_settings_that_do_not_fit_are_refused() -> None:
    there, layout, shape = published("tet-vgg")
    state = there.state_dict()
    for change, match in (
        ({"timesteps": 0}, "timesteps = 0"),
        ({"std": (0.0,)}, "std"),
        ({"in_shape": (2, 16)}, "in_shape"),
        ({"in_shape": (2, 48, 48)}, "layers do not fit inputs .2, 48, 48."),
        ({"mean": (0.1, 0.2, 0.3)}, "layers do not fit inputs"),
    ):
        settings: dict[str, Any] = {"timesteps": 2, "mean": (0.0,), "std": (1.0,), "in_shape": shape}
        with refused(match):
            import_state(state, layout, **{**settings, **change})


def test_neurons_of_ones_own_replace_those_of_the_code() -> None:
    there, layout, _ = published("tet-vgg")
    neuron = sg.Neuron(decay=0.9)
    net = import_state(there.state_dict(), layout, timesteps=2, mean=(0.0,), std=(1.0,), neuron=neuron)
    assert {layer.spec for layer in sg.neurons.spiking(net).values()} == {neuron}


@pytest.mark.parametrize("name", ["rat-vgg", "rat-wrn", "tet-resnet", "tet-vgg"])
def test_imported_networks_go_on_to_other_tools(name: str) -> None:
    pytest.importorskip("nir")
    there, layout, shape = published(name)
    here, x = imported(there, there.state_dict(), layout, shape), torch.rand(2, *shape)
    again = from_nir(to_nir(here), reset="hard", timesteps=there.steps)
    with torch.no_grad():
        torch.testing.assert_close(again(x), there(x), rtol=1e-4, atol=1e-4)


def test_an_imported_network_is_attacked() -> None:
    there, layout, shape = published("tet-resnet")
    net, x = imported(there, there.state_dict(), layout, shape), torch.rand(4, *shape)
    y = net(x).argmax(1)
    assert sg.pgd(net, x, y, sg.Linf(0.2), steps=3).broken.any()
