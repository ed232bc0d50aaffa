"""The picture of a tap's potentials."""

import re
from pathlib import Path

import matplotlib
import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.adapters.histograms import BINS, limits
from spikeguard.networks.classifier import Classifier


def tapped(current: Tensor, *layers: str) -> sg.adapters.Tap:
    """A tap that has read ``current - 1`` in layers of these names."""
    net = nn.ModuleDict({name: sg.LIF(decay=0.0) for name in layers})
    with sg.tap(net) as tap:
        for layer in net.values():
            layer(current)
    return tap


def titles(path: Path) -> list[str]:
    return re.findall(r">([^<>]*%[^<>]*|layer \w*)</t", path.read_text())


def test_a_picture_counts_what_fires_and_what_is_near(tmp_path: Path) -> None:
    currents = torch.tensor([0.2, 0.9, 1.0, 2.5]).view(1, 1, 4)  # u = -0.8, -0.1, 0, 1.5
    tapped(currents, "layer a").draw(tmp_path / "p.svg", delta=0.5)
    assert titles(tmp_path / "p.svg") == [
        "layer a",
        "50.0 % at or above the threshold",
        "50.0 % nearer than 0.5",
    ]


def test_all_recordings_of_a_layer_make_one_panel(tmp_path: Path) -> None:
    net = nn.ModuleDict({"layer a": sg.LIF(decay=0.0)})
    with sg.tap(net) as tap:
        net["layer a"](torch.zeros(1, 1, 3))
        net["layer a"](torch.ones(1, 1, 1))
    tap.draw(tmp_path / "p.svg")
    assert titles(tmp_path / "p.svg") == ["layer a", "25.0 % at or above the threshold"]


def test_any_number_of_layers_is_drawn_and_the_same_every_time(tmp_path: Path) -> None:
    tap = tapped(torch.rand(2, 3, 4), "a", "b", "c", "d", "e")
    for name in ("p.svg", "q.svg"):
        tap.draw(tmp_path / name)
    drawn = (tmp_path / "p.svg").read_text()
    assert drawn == (tmp_path / "q.svg").read_text()
    assert drawn.count("at or above") == 5
    assert drawn.count("u = potential - threshold") == 4  # below the last panel of each column


def test_a_png_is_one_and_pyplot_stays_as_it_was(tiny: Classifier, tmp_path: Path) -> None:
    backend = matplotlib.rcParams._get("backend")
    with sg.tap(tiny) as tap:
        tiny(torch.rand(2, 1, 8, 8))
    tap.draw(str(tmp_path / "p.png"))
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert matplotlib.rcParams._get("backend") == backend


@pytest.mark.parametrize("values", [[-1.0], [0.0, 0.0], [3.0, 4.0], [-5.0, 0.1], [-1.0] * 999 + [1e6]])
def test_the_threshold_is_the_edge_of_a_bar_inside_of_the_picture(values: list[float]) -> None:
    low, high = limits(torch.tensor(values))
    bars = -low / ((high - low) / BINS)
    assert 1 <= round(bars) <= BINS - 1
    assert bars == pytest.approx(round(bars))


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path) -> None:
    tap = tapped(torch.rand(1, 1, 2), "a")
    with pytest.raises(sg.UserError, match=r"must end with .svg or .png"):
        tap.draw(tmp_path / "p.jpg")
    with pytest.raises(sg.UserError, match="delta = -1"):
        tap.draw(tmp_path / "p.svg", delta=-1)
    tap.clear()
    with pytest.raises(sg.UserError, match="has read no potentials"):
        tap.draw(tmp_path / "p.svg")
    with pytest.raises(sg.UserError, match="a has potentials that are no finite numbers"):
        tapped(torch.tensor([[[torch.nan, 0.0]]]), "a").draw(tmp_path / "p.svg")
    assert not list(tmp_path.iterdir())
