"""Files of graphs, read by the tools themselves: the same spikes, and why a few are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import awake
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.interchange import from_nir, to_nir
from spikeguard.neurons import Neuron

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
nir: Any = pytest.importorskip("nir")


def vectors(**neuron: Any) -> tuple[nn.Sequential, Tensor]:
    """Two layers of neurons and a sequence; all numbers are 64ths, so that potentials meet thresholds."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Linear(12, 30, bias=False), sg.LIF(**neuron), nn.Linear(30, 8), sg.LIF(**neuron)
    ).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_((p * 3 * 64).round() / 64)
    return net, (torch.rand(6, 10, 12) * 4).round() / 4


def images(neuron: Neuron, network: str = "small", **options: Any) -> tuple[nn.Module, Tensor]:
    net = sg.build(
        network,
        classes=5,
        in_shape=(2, 8, 8),
        timesteps=3,
        neuron=neuron,
        mean=(0.5,),
        std=(0.25,),
        **options,
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.75)  # else the last layers are silent, and all scores 0
    x = torch.rand(6, 2, 8, 8)
    with torch.no_grad():
        assert float(awake(net, batches=4, size=8)(x).std(0).min()) > 0
    return net, x


def by_snntorch(path: Path, sequence: Tensor) -> Tensor:
    module: Any = pytest.importorskip("snntorch.import_nir")
    net = module.import_from_nir(nir.read(path))
    with torch.no_grad():
        return torch.stack([net(x)[0] for x in sequence])


def by_spikingjelly(path: Path, sequence: Tensor) -> Tensor:
    module: Any = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    net, state, outputs = module.import_from_nir(nir.read(path), dt=1e-4), None, []
    with torch.no_grad():
        for x in sequence:
            y, state = net(x, state)
            outputs.append(y)
    return torch.stack(outputs)


def by_sinabs(path: Path, sequence: Tensor, reset: str | None = None) -> Tensor:
    """``reset`` None: as sinabs reads it, with several spikes a step and a lower bound."""
    module: Any = pytest.importorskip("sinabs.nir")
    from sinabs.activation import MembraneReset, MembraneSubtract, SingleSpike
    from sinabs.layers import IAFSqueeze, LIFSqueeze

    steps, samples = sequence.shape[:2]
    net = module.from_nir(nir.read(path), batch_size=samples)
    for layer in net.modules():
        if reset is not None and isinstance(layer, (IAFSqueeze, LIFSqueeze)):
            layer.spike_fn, layer.min_v_mem = SingleSpike, None
            layer.reset_fn = MembraneReset() if reset == "hard" else MembraneSubtract()
    with torch.no_grad():
        outputs, _ = net(sequence.transpose(0, 1).flatten(0, 1))
    return outputs.unflatten(0, (samples, steps)).transpose(0, 1)  # type: ignore[no-any-return]


def by_norse(path: Path, sequence: Tensor) -> Tensor:
    module: Any = pytest.importorskip("norse.torch")
    net, state, outputs = module.from_nir(nir.read(path)), None, []
    with torch.no_grad():
        for x in sequence:
            y, state = net(x, state)
            outputs.append(y)
    return torch.stack(outputs)


def outputs(net: nn.Module, x: Tensor, read: bool = False) -> Tensor:
    with torch.no_grad():
        result: Tensor = net(x, per_step=True) if read else net(x)
    return result


DECAYS = [0.0, 0.25, 0.5, 0.9, 1.0]


@pytest.mark.parametrize("decay", DECAYS)
def test_snntorch_reads_the_same_spikes(decay: float, tmp_path: Path) -> None:
    net, x = vectors(decay=decay)
    to_nir(net, tmp_path / "net.nir", in_shape=(12,), convention="snntorch")
    fired = outputs(net, x)
    assert 0.02 < fired.mean() < 0.9
    assert torch.equal(by_snntorch(tmp_path / "net.nir", x), fired)
    assert torch.equal(outputs(from_nir(tmp_path / "net.nir", reset="hard"), x, read=True), fired)


@pytest.mark.parametrize("decay", DECAYS[1:])
def test_spikingjelly_reads_the_same_spikes(decay: float, tmp_path: Path) -> None:
    net, x = vectors(decay=decay)
    to_nir(net, tmp_path / "net.nir", in_shape=(12,), convention="spikingjelly")
    assert torch.equal(by_spikingjelly(tmp_path / "net.nir", x), outputs(net, x))


@pytest.mark.parametrize("decay", DECAYS)
def test_norse_reads_the_same_spikes_without_a_warning(
    decay: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It multiplies the current by what a step loses, whatever r is: the threshold makes up for it."""
    net, x = vectors(decay=decay)
    to_nir(net, tmp_path / "net.nir", in_shape=(12,), convention="norse")
    fired = outputs(net, x)
    assert 0.02 < fired.mean() < 0.9
    assert torch.equal(by_norse(tmp_path / "net.nir", x), fired)
    assert torch.equal(outputs(from_nir(tmp_path / "net.nir", reset="hard"), x, read=True), fired)
    assert not caplog.records


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_norse_reads_convolutional_networks(decay: float, tmp_path: Path) -> None:
    net, x = images(Neuron(decay=decay), width=3)
    to_nir(net, tmp_path / "net.nir", convention="norse")
    scores = by_norse(tmp_path / "net.nir", x.expand(3, *x.shape))
    with torch.no_grad():
        wanted = net(x, per_step=True)
    torch.testing.assert_close(scores, wanted, rtol=1e-5, atol=1e-5)


def test_a_network_of_norse_is_read_with_the_same_spikes() -> None:
    norse: Any = pytest.importorskip("norse.torch")
    torch.manual_seed(0)
    fast = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(250.0), v_th=torch.tensor(0.25))
    first, last = nn.Linear(6, 20), nn.Linear(20, 4)
    net = norse.SequentialState(first, norse.LIFBoxCell(fast), last, norse.LIFBoxCell(fast))
    x, state, fired = 4 * torch.rand(5, 7, 6), None, []
    with torch.no_grad():
        last.weight.uniform_(-0.4, 1.0)
        for step in x:
            y, state = net(step, state)
            fired.append(y)
    spikes = torch.stack(fired)
    assert 0.02 < spikes.mean() < 0.9
    graph = norse.to_nir(net, x[0, 0])
    for node in graph.nodes.values():  # what norse 1.1.0 writes: its own steps for seconds
        if isinstance(node, nir.LIF):
            assert node.tau == pytest.approx(0.001 / 250)
            node.tau = np.full(1, 1 / 250)
    from_nir(graph, reset="hard", convention="norse", expect=(x, spikes))


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("decay", DECAYS)
def test_sinabs_reads_the_same_spikes(decay: float, reset: Literal["hard", "soft"], tmp_path: Path) -> None:
    net, x = vectors(decay=decay, reset=reset)
    to_nir(net, tmp_path / "net.nir", in_shape=(12,), convention="sinabs")
    assert torch.equal(by_sinabs(tmp_path / "net.nir", x, reset), outputs(net, x))
    assert torch.equal(outputs(from_nir(tmp_path / "net.nir", reset=reset), x, read=True), outputs(net, x))


def test_sinabs_as_it_reads_resets_softly_and_may_fire_twice_a_step(tmp_path: Path) -> None:
    net, x = vectors(decay=0.5, reset="soft")
    to_nir(net, tmp_path / "net.nir", in_shape=(12,), convention="sinabs")
    assert by_sinabs(tmp_path / "net.nir", x).max() > 1
    with torch.no_grad():
        for factor, p in zip((0.5, 1.5, 1.5), net.parameters(), strict=True):
            p.mul_(factor)  # potentials stay below two thresholds
    to_nir(net, tmp_path / "net.nir", in_shape=(12,), convention="sinabs")
    fired = outputs(net, x)
    assert fired.mean() > 0.005
    assert torch.equal(by_sinabs(tmp_path / "net.nir", x), fired)


@pytest.mark.parametrize(
    ("network", "options", "decay"),
    [("small", {"width": 3}, 0.5), ("small", {"width": 3}, 1.0), ("wrn16", {"widen": 1}, 0.5)],
)
def test_snntorch_and_spikingjelly_read_convolutional_networks(
    network: str, options: dict[str, int], decay: float, tmp_path: Path
) -> None:
    net, x = images(Neuron(decay=decay), network, **options)
    with torch.no_grad():
        wanted = net(x, per_step=True)
    for convention, read in (("snntorch", by_snntorch), ("spikingjelly", by_spikingjelly)):
        to_nir(net, tmp_path / "net.nir", convention=convention)
        scores = read(tmp_path / "net.nir", x.expand(3, *x.shape))
        torch.testing.assert_close(scores, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_sinabs_reads_convolutional_networks_that_do_not_leak(
    reset: Literal["hard", "soft"], tmp_path: Path
) -> None:
    net, x = images(Neuron(kind="if", reset=reset), width=3)
    to_nir(net, tmp_path / "net.nir", convention="sinabs")
    scores = by_sinabs(tmp_path / "net.nir", x.expand(3, *x.shape), reset)
    with torch.no_grad():
        torch.testing.assert_close(scores, net(x, per_step=True), rtol=1e-5, atol=1e-5)


def ones(*shape: int) -> Any:
    return np.ones(shape, dtype=np.float32)


def test_sinabs_cannot_read_leaky_maps() -> None:
    module: Any = pytest.importorskip("sinabs.nir")
    node = nir.LIF(tau=ones(2, 3, 3), r=ones(2, 3, 3), v_leak=0 * ones(2, 3, 3), v_threshold=ones(2, 3, 3))
    with pytest.raises(ValueError, match="ambiguous"):
        module.from_nir(nir.NIRGraph.from_list(node), batch_size=1)


def test_snntorch_reads_an_unleaky_neuron_as_a_leaky_one() -> None:
    module: Any = pytest.importorskip("snntorch.import_nir")
    net = module.import_from_nir(nir.NIRGraph.from_list(nir.IF(r=ones(2), v_threshold=ones(2))))
    (layer,) = [m for m in net.modules() if hasattr(m, "beta")]
    assert layer.beta < 1


def test_a_network_of_snntorch_is_read_with_the_same_spikes() -> None:
    snn: Any = pytest.importorskip("snntorch")
    export: Any = pytest.importorskip("snntorch.export_nir")
    torch.manual_seed(0)

    def leaky(size: int) -> Any:
        constants = torch.full((size,), 0.75), torch.ones(size)
        return snn.Leaky(*constants, init_hidden=True, reset_mechanism="zero", reset_delay=False)

    net = nn.Sequential(nn.Linear(6, 20), leaky(20), last := nn.Linear(20, 4), leaky(4))
    nn.init.uniform_(last.weight, -0.4, 1.0)
    x = 4 * torch.rand(5, 7, 6)
    graph = export.export_to_nir(net, x[0], ignore_dims=[0])
    snn.Leaky.reset_hidden()
    with torch.no_grad():
        fired = torch.stack([net(step) for step in x])
    assert 0.02 < fired.mean() < 0.9
    from_nir(graph, reset="hard", dt=1e-4, expect=(x, fired))
    with pytest.raises(sg.UserError, match="other scores"):
        from_nir(graph, reset="soft", dt=1e-4, expect=(x, fired))


def test_a_network_of_sinabs_is_read_with_the_same_spikes() -> None:
    module: Any = pytest.importorskip("sinabs.nir")
    import sinabs.layers as sl

    torch.manual_seed(0)
    net = nn.Sequential(
        first := nn.Conv2d(2, 4, 3),
        sl.IAFSqueeze(batch_size=3),
        sl.SumPool2d(2, 2),
        nn.Flatten(),
        last := nn.Linear(16, 5),
        sl.LIFSqueeze(
            tau_mem=3 * torch.ones(5), spike_threshold=torch.ones(5), batch_size=3, norm_input=False
        ),
    )
    nn.init.uniform_(first.weight, -0.1, 0.3)
    nn.init.uniform_(last.weight, -0.2, 0.2)
    x = torch.rand(4, 3, 2, 6, 6)
    folded = x.transpose(0, 1).flatten(0, 1)
    with torch.no_grad():
        net(folded)
        graph = module.to_nir(net, folded)
        for layer in net.modules():
            if isinstance(layer, sl.StatefulLayer):
                layer.reset_states()
        fired = net(folded).unflatten(0, (3, 4)).transpose(0, 1)
    assert fired.mean() > 0.005
    assert fired.max() == 1
    from_nir(graph, reset="soft", convention="sinabs", expect=(x, fired))
