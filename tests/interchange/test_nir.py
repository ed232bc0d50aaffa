"""NIR graphs: networks written and read back, and what the format cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import awake
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.defenses import DLIF
from spikeguard.interchange import Folded, from_nir, to_nir
from spikeguard.interchange.conventions import CONVENTIONS
from spikeguard.interchange.folding import dense
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Neuron, spiking

nir: Any = pytest.importorskip("nir")
h5py: Any = pytest.importorskip("h5py")


def conv_net(neuron: Neuron, network: str = "small", **options: Any) -> Classifier:
    """A tiny network whose neurons fire and whose batch norms are not trivial."""
    net = sg.build(
        network,
        classes=5,
        in_shape=(3, 8, 8),
        timesteps=3,
        neuron=neuron,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        **options,
    )
    return awake(net, batches=4, size=8)


def spikes(net: nn.Module, x: Tensor) -> list[Tensor]:
    """What every layer fires."""
    with torch.no_grad(), sg.tap(net) as t:
        net(x)
    return [u >= 0 for u in t.potentials.values()]


NEURONS = [
    Neuron(decay=0.5),
    Neuron(decay=0.9, reset="soft", threshold=0.7),
    Neuron(kind="if"),
    Neuron(kind="plif", decay=0.3),
    Neuron(decay=0.0),
]


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda n: f"{n.kind}-{n.decay}-{n.reset}")
def test_a_network_comes_back_from_a_file_with_the_same_spikes(neuron: Neuron, tmp_path: Path) -> None:
    net, path = conv_net(neuron, width=4), tmp_path / "net.nir"
    to_nir(net, path)
    again = from_nir(path, reset=neuron.reset, timesteps=3)
    x = torch.rand(8, 3, 8, 8)
    before, after = spikes(net, x), spikes(again, x)
    assert len(before) == 3
    assert 0.05 < float(before[0].float().mean()) < 0.95
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    torch.testing.assert_close(again(x), net(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again(x, per_step=True), net(x, per_step=True), rtol=1e-5, atol=1e-5)


def test_branches_and_learned_joins_come_back_too() -> None:
    net = conv_net(Neuron(decay=0.9), "wrn16", widen=1)
    with torch.no_grad():  # away from 1/2 each
        for name, parameter in net.named_parameters():
            if name.endswith("join.weight"):
                parameter.copy_(torch.tensor([0.8, 0.3]))
    x = torch.rand(4, 3, 8, 8)
    again = from_nir(to_nir(net), reset="hard", timesteps=3)
    torch.testing.assert_close(again(x), net(x), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(spikes(net, x), spikes(again, x), strict=True))


def sequential() -> nn.Sequential:
    """A network of a user's own on ``[T, N, 2, 6, 6]``."""
    torch.manual_seed(1)
    grouped = nn.Conv2d(2, 4, 3, padding="same", groups=2)
    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.rand(4) - 0.5, torch.rand(4) + 0.5
    after = nn.BatchNorm2d(4)  # of spikes: nothing to fold into
    after.running_mean, after.running_var = torch.rand(4), torch.rand(4) + 0.5
    return nn.Sequential(
        Folded(grouped, norm),
        sg.LIF(decay=0.75, threshold=0.3),
        Folded(after, nn.AvgPool2d(2), nn.Dropout(0.5), nn.Conv2d(4, 3, 3, 2, 1)),
        sg.LIF(decay=0.75, threshold=0.05),
        nn.Flatten(2),
        nn.Linear(12, 4, bias=False),
        sg.PLIF(decay=0.6, threshold=0.1),
    ).eval()


def test_a_sequential_of_layers_comes_back() -> None:
    net, x = sequential(), torch.rand(5, 8, 2, 6, 6)
    again = from_nir(to_nir(net, in_shape=(2, 6, 6)), reset="hard", expect=(x, net(x)))
    fired = spikes(net, x)
    assert [0.02 < float(s.float().mean()) < 0.98 for s in fired] == [True] * 3
    assert all(torch.equal(a, b) for a, b in zip(fired, spikes(again, x), strict=True))


def test_a_network_that_was_read_is_written_again(tmp_path: Path) -> None:
    net, x = conv_net(Neuron(decay=0.5), "wrn16", widen=1), torch.rand(4, 3, 8, 8)
    first: Any = to_nir(net, tmp_path / "a.nir")
    once = from_nir(first, reset="hard", timesteps=3)
    second: Any = to_nir(once, tmp_path / "b.nir")
    assert len(second.nodes) == len(first.nodes)  # a layer that two others read is written once
    twice = from_nir(tmp_path / "b.nir", reset="hard", timesteps=3)
    assert torch.equal(once(x), twice(x))


def test_a_read_network_is_tapped_attacked_and_trained() -> None:
    net = from_nir(to_nir(conv_net(Neuron(decay=0.5), width=4)), reset="hard", timesteps=3)
    x = torch.rand(4, 3, 8, 8)
    y = net(x).argmax(1)
    result = sg.pgd(net, x, y, sg.Linf(0.1), steps=2)
    assert (result.x - x).abs().max() <= 0.1 + 1e-6
    net.train()(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_a_potential_exactly_at_the_threshold_fires_before_and_after(reset: Literal["hard", "soft"]) -> None:
    net = nn.Sequential(one := nn.Linear(1, 1, bias=False), sg.LIF(decay=0.5, reset=reset))
    nn.init.constant_(one.weight, 1.0)
    x = torch.tensor([1.0, 0.5, 0.75, 0.5, 0.999]).view(5, 1, 1)
    graph: Any = to_nir(net, in_shape=(1,))
    (neurons,) = [n for n in graph.nodes.values() if isinstance(n, nir.LIF)]
    assert neurons.v_threshold.item() < 1  # NIR's neurons fire above their threshold, ours at it
    assert torch.equal(from_nir(graph, reset=reset)(x, per_step=True), net(x))


def lif(tau: Any = 2e-4, r: float = 2.0, threshold: float = 1.0, size: int = 3, **more: Any) -> Any:
    ones = np.ones(size)
    return nir.LIF(tau=tau * ones, r=r * ones, v_leak=0 * ones, v_threshold=threshold * ones, **more)


def graph_of(*nodes: Any, size: int = 3) -> Any:
    return nir.NIRGraph.from_list(nir.Input(np.array([size])), *nodes, nir.Output(np.array([size])))


def layer_of(graph: Any, **settings: Any) -> sg.neurons.Spiking:
    (layer,) = spiking(from_nir(graph, reset="hard", **settings)).values()
    return layer


def test_constants_become_those_of_a_step() -> None:
    layer = layer_of(graph_of(lif()), dt=1e-4)  # 1 - dt / tau, current times r dt / tau = 1
    assert float(layer.decay) == 0.5
    assert float(layer.threshold) == pytest.approx(1)
    layer = layer_of(graph_of(lif(tau=4e-4, r=1.0)), dt=1e-4)  # a quarter of the current: four times as high
    assert float(layer.decay) == 0.75
    assert float(layer.threshold) == pytest.approx(4)
    layer = layer_of(graph_of(lif(tau=2.0, r=5.0)), convention="sinabs")
    assert float(layer.decay) == pytest.approx(np.exp(-0.5))
    assert float(layer.threshold) == 1  # sinabs ignores r, and fires at the threshold
    for r in (1.0, 1e4):  # tools write either for a current that is added as it is
        ones = np.ones(3)
        layer = layer_of(graph_of(nir.IF(r=r * ones, v_threshold=2 * ones)), dt=1e-4)
        assert float(layer.decay) == 1
        assert float(layer.threshold) == pytest.approx(2)


def test_a_foreign_neuron_fires_above_its_threshold_and_not_at_it() -> None:
    layer, current = layer_of(graph_of(lif()), dt=1e-4), torch.tensor([1.0, 1.0 + 2e-7])
    assert layer(current.view(1, 1, 2)).flatten().tolist() == [0, 1]
    at = layer_of(graph_of(lif(tau=2.0, r=1.0)), convention="sinabs")
    assert at(current.view(1, 1, 2)).flatten().tolist() == [1, 1]


def refused(match: str) -> Any:
    return pytest.raises(sg.UserError, match=match)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (lambda: lif(tau=np.array([1e-4, 2e-4, 3e-4])), "share one finite tau"),
        (lambda: lif(threshold=-1.0), "must be above 0"),
        (lambda: lif(v_reset=0.5 * np.ones(3)), "v_reset = 0.5"),
        (lambda: lif(tau=5e-5), "is dt right"),
        (lambda: lif(tau=-1.0), "tau = -1 must be above 0"),
        (lambda: nir.IF(r=3 * np.ones(3), v_threshold=np.ones(3)), "must be 1 or 1 / dt"),
        (lambda: nir.CubaLIF(*[np.ones(3)] * 5), "CubaLIF: its current leaks"),
        (lambda: nir.LI(*[np.ones(3)] * 3), "LI: it does not fire"),
        (lambda: nir.Scale(np.ones(3)), "Scale"),
        (lambda: nir.Threshold(np.ones(3)), "Threshold"),
        (lambda: nir.Delay(np.ones(3)), "Delay"),
        (lambda: graph_of(lif()), "NIRGraph: a graph inside the graph"),
        (lambda: nir.Linear(np.full((3, 3), np.nan)), "not finite"),
    ],
)
def test_a_node_without_a_counterpart_is_refused_by_name(node: Any, words: str) -> None:
    with refused(f"node '.*{words}"):
        from_nir(graph_of(node()), reset="hard", dt=1e-4)


def test_a_recurrent_edge_is_refused_by_name() -> None:
    nodes = {
        "in": nir.Input(np.array([3])),
        "lif": lif(),
        "back": nir.Linear(np.eye(3)),
        "out": nir.Output(np.array([3])),
    }
    edges = [("in", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "out")]
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    with refused("recurrent edge '(lif' -> 'back|back' -> 'lif)'"):
        from_nir(graph, reset="hard", dt=1e-4)


@pytest.mark.parametrize(
    ("extra", "edges", "words"),
    [
        ({"alone": nir.Linear(np.eye(3))}, [("alone", "out")], "'alone' has no input"),
        ({"in2": nir.Input(np.array([3]))}, [("in2", "out")], "2 nodes of kind Input, must have one"),
        ({"out2": nir.Output(np.array([3]))}, [("lif", "out2")], "2 nodes of kind Output"),
        ({}, [("lif", "gone")], "edge 'lif' -> 'gone' leads to no node"),
    ],
)
def test_loose_ends_are_refused_by_name(extra: Any, edges: Any, words: str) -> None:
    nodes = {"in": nir.Input(np.array([3])), "lif": lif(), "out": nir.Output(np.array([3])), **extra}
    graph = nir.NIRGraph(nodes, [("in", "lif"), ("lif", "out"), *edges], type_check=False)
    with refused(words):
        from_nir(graph, reset="hard", dt=1e-4)


def test_reset_time_step_and_convention_must_be_named_and_agree(tmp_path: Path) -> None:
    with refused("reset"):
        from_nir(graph_of(lif()), dt=1e-4)  # type: ignore[call-arg]
    with refused("dt is needed"):
        from_nir(graph_of(lif()), reset="hard")
    with refused("dt = 0.0 must be a positive"):
        from_nir(graph_of(lif()), reset="hard", dt=0.0)
    with refused("convention 'sinabs' has a time step of 1"):
        from_nir(graph_of(lif()), reset="hard", dt=1e-4, convention="sinabs")
    with refused("unknown convention 'snntorc' .did you mean 'snntorch'"):
        from_nir(graph_of(lif()), reset="hard", dt=1e-4, convention="snntorc")
    net = nn.Sequential(nn.Linear(2, 2), sg.LIF(decay=0.5, reset="soft"))
    to_nir(net, tmp_path / "soft.nir", in_shape=(2,))
    with refused("reset = 'hard', but the graph was written with 'soft'"):
        from_nir(tmp_path / "soft.nir", reset="hard")
    with refused("convention = 'sinabs', but the graph was written with 'euler'"):
        from_nir(tmp_path / "soft.nir", reset="soft", convention="sinabs")


def test_scores_of_another_tool_are_compared() -> None:
    net, x = sequential(), torch.rand(4, 6, 2, 6, 6)
    graph, outputs = to_nir(net, in_shape=(2, 6, 6)), net(x)
    from_nir(graph, reset="hard", expect=(x, outputs.mean(0)))
    wrong = outputs.clone()
    wrong[2, 3, 0] = 1 - wrong[2, 3, 0]
    with refused("other scores on 1 of 6 inputs"):
        from_nir(graph, reset="hard", expect=(x, wrong))
    with refused("must be"):
        from_nir(graph, reset="hard", expect=(x, outputs[:, :, :2]))


def changed(**change: Any) -> Classifier:
    net = conv_net(Neuron(decay=0.5), width=2)
    for layer in spiking(net).values():
        for name, value in change.items():
            setattr(layer, name, value)
    return net


def plain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, sg.LIF(decay=0.5))


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (lambda: changed(noise=sg.Noise(0.1, at_eval=True)), {}, "noise in evaluation"),
        (lambda: changed(spec=Neuron(v_init=0.5)), {}, "v_init = 0.5"),
        (lambda: nn.Sequential(sg.LIF(), sg.LIF(reset="soft")), {"in_shape": (3,)}, "some layers reset"),
        (lambda: plain(nn.ReLU()), {"in_shape": (3,)}, "no ReLU"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"in_shape": (3,)}, "no spiking layer"),
        (lambda: plain(nn.Linear(3, 3)), {}, "in_shape is needed"),
        (lambda: plain(nn.Linear(3, 3)), {"in_shape": (3, 3)}, "must be .features"),
        (lambda: plain(nn.Linear(4, 3)), {"in_shape": (3,)}, "cannot run"),
        (lambda: plain(Folded(nn.Conv2d(1, 1, 3))), {"in_shape": (1, 5, 5)}, "must be a vector"),
        (lambda: plain(Folded(nn.Conv2d(1, 1, (3, 1)))), {"in_shape": (1, 5, 5)}, "square kernels only"),
        (lambda: plain(Folded(nn.AvgPool2d(3, padding=1))), {"in_shape": (1, 6, 6)}, "tools disagree"),
        (lambda: plain(Folded(nn.MaxPool2d(2))), {"in_shape": (1, 6, 6)}, "no MaxPool2d"),
        (lambda: plain(Folded(nn.Flatten(2))), {"in_shape": (1, 6, 6)}, "must flatten all"),
        (lambda: plain(nn.BatchNorm1d(3, track_running_stats=False)), {"in_shape": (3,)}, "running stat"),
        (lambda: changed(), {"in_shape": (1, 8, 8)}, "but the network's is"),
        (lambda: changed(), {"convention": "sinabs"}, "cannot read leaky neurons on maps"),
        (lambda: changed(), {"batch": torch.rand(3, 8, 8)}, "must be .N, 3, 8, 8"),
        (lambda: conv_net(Neuron(kind="if"), "wrn16", widen=1), {"convention": "sinabs"}, "branches"),
        (lambda: plain(nn.Linear(3, 3)), {"in_shape": (3,), "path": "/dev/null/x.nir"}, "/dev/null"),
        (
            lambda: nn.Sequential(sg.LIF(reset="soft")),
            {"in_shape": (3,), "convention": "snntorch"},
            "resets every layer to 0",
        ),
        (
            lambda: nn.Sequential(sg.LIF(decay=0.0)),
            {"in_shape": (3,), "convention": "spikingjelly"},
            "decay 0",
        ),
    ],
)
def test_what_a_graph_cannot_hold_is_refused_by_name(make: Any, settings: Any, words: str) -> None:
    with refused(f"^(to_nir|NIR|cannot write).*{words}"):
        to_nir(make(), **settings)


def test_changes_by_defenses_open_taps_and_subclasses_are_refused() -> None:
    net = conv_net(Neuron(decay=0.5), width=2)
    with sg.tap(net), refused("a tap is open"):
        to_nir(net)
    DLIF().prepare(net)
    with refused("a change of the neurons"):
        to_nir(net)

    class Louder(sg.LIF):
        def forward(self, current: Tensor, timesteps: int | None = None) -> Tensor:
            return 2 * super().forward(current, timesteps)

    with refused("no Louder"):
        to_nir(nn.Sequential(Louder()), in_shape=(3,))


def test_a_graph_that_computes_something_else_is_never_written(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), sg.LIF(decay=0.5))
    net[0].register_forward_hook(lambda module, args, output: output + 1)
    with refused("the potentials of 1 differ"):
        to_nir(net, tmp_path / "net.nir", in_shape=(3,))
    assert not list(tmp_path.iterdir())


def test_files_that_hold_no_graph_end_in_one_line(tmp_path: Path) -> None:
    with refused("no file"):
        from_nir(tmp_path / "none.nir", reset="hard")
    (tmp_path / "text.nir").write_text("not a graph")
    with refused("holds no NIR graph"):
        from_nir(tmp_path / "text.nir", reset="hard")
    with h5py.File(tmp_path / "bomb.nir", "w") as file:  # a few bytes that say they are many
        file.create_dataset("node/weight", (2**31,), "f4", chunks=(2**20,), compression="gzip")
    with refused("holds 8,589,934,592 bytes of numbers"):
        from_nir(tmp_path / "bomb.nir", reset="hard")
    with refused("must be a NIRGraph"):
        from_nir(3, reset="hard")
    wide = {"in": nir.Input(np.array([3])), "w": nir.Linear(np.eye(4)), "out": nir.Output(np.array([4]))}
    with refused("layers do not fit inputs .3,."):
        from_nir(nir.NIRGraph(wide, [("in", "w"), ("w", "out")], type_check=False), reset="hard", dt=1e-4)
    graph = graph_of(nir.Linear(np.eye(3)), lif())
    graph.nodes["linear"].weight = "text"
    with refused("damaged"):
        from_nir(graph, reset="hard", dt=1e-4)


def test_inputs_of_another_shape_are_refused() -> None:
    net = from_nir(to_nir(plain(nn.Linear(3, 3)), in_shape=(3,)), reset="hard")
    for x in (torch.rand(2, 4), torch.rand(3), torch.ones(2, 3, dtype=torch.int64), torch.rand(1, 1, 2, 3)):
        with refused(r"must be floats of shape \[N, 3\]"):
            net(x)


def test_a_grouped_convolution_is_one_in_one_group() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2, bias=False)
    x = torch.rand(2, 4, 5, 5)
    torch.testing.assert_close(torch.conv2d(x, dense(conv.weight, 2)), conv(x))


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 0.9, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_gives_back_the_decay_and_adds_the_current_unchanged(
    name: str, decay: float
) -> None:
    how = CONVENTIONS[name]
    dt = how.dt or 1e-3
    tau = how.tau(decay, dt)
    assert how.decay(tau, dt) == pytest.approx(decay, abs=1e-12)
    assert how.gain(tau, how.resistance(tau, dt), dt) == pytest.approx(how.scale(decay))
    written = how.written_tau(tau, dt)
    nearest = np.float32(how.decay(written, dt, torch.float32))
    lost = np.float32(1 - decay)  # what norse rounds
    limit = np.spacing(nearest) if how.exponential else np.spacing(lost) if how.as_lost else 0
    assert abs(nearest - np.float32(decay)) <= limit
