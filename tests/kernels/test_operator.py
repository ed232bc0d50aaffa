"""The layer of neurons as one operator: networks compile and export whole, and taps work on them."""

import io
from typing import Literal

import pytest
import torch
from conftest import awake
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.kernels import operator
from spikeguard.neurons import Neuron, Noise, Spiking
from spikeguard.surrogates import Atan


@pytest.fixture
def net() -> sg.networks.classifier.Classifier:
    return awake(sg.build("small", classes=10, in_shape=(1, 8, 8), timesteps=2, width=2))


@pytest.fixture
def fresh_compiler() -> None:
    torch._dynamo.reset()


def gradients(net: torch.nn.Module, call: object, x: Tensor) -> dict[str, Tensor]:
    assert callable(call)
    x = x.clone().requires_grad_()
    net.zero_grad()
    call(x).square().sum().backward()
    assert x.grad is not None
    return {"x": x.grad, **{n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}}


@pytest.mark.usefixtures("fresh_compiler")
def test_a_network_compiles_in_one_graph_to_the_same_bits_and_a_tap_reads_it(
    net: sg.networks.classifier.Classifier,
) -> None:
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(net, backend=backend)
    assert torch.equal(compiled(x), net(x))
    assert len(graphs) == 1
    assert str(graphs[0].graph).count("spikeguard.spikes") == 3
    found, own = gradients(net, compiled, x), gradients(net, net, x)
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)
    before = len(graphs)
    with sg.tap(net, grad=True) as tapped:
        logits = compiled(x.requires_grad_())
    with sg.tap(net) as plain:
        assert torch.equal(net(x), logits)
    assert all(torch.equal(u, plain.potentials[name]) for name, u in tapped.potentials.items())
    assert all(u.requires_grad for u in tapped.potentials.values())  # read outside of the graph
    assert len(graphs) == before
    with sg.tap(net, noise=1.0, seed=3):
        noisy = compiled(x)
    assert not torch.equal(noisy, logits)
    assert torch.equal(compiled(x), logits)
    assert len(graphs) == before


def test_an_exported_network_keeps_its_layers_whole(net: sg.networks.classifier.Classifier) -> None:
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    exported = torch.export.export(net, (x,))
    assert sum("spikeguard.spikes" in str(node.target) for node in exported.graph.nodes) == 3
    assert torch.equal(exported.module()(x), net(x))


def user_net() -> nn.Sequential:
    """Layers of neurons in plain PyTorch."""
    second = sg.PLIF(decay=0.4, reset="soft", threshold=0.3)
    net = nn.Sequential(nn.Linear(4, 8), sg.LIF(decay=0.5), nn.Linear(8, 8), second, nn.Linear(8, 2))
    return net.eval()


def test_an_exported_network_can_be_written_as_arithmetic() -> None:
    net, x = user_net(), torch.rand(3, 5, 4)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(net, (x,), dynamic_shapes=({1: batch},))
    plain = program.run_decompositions(sg.neurons.decompositions())
    assert "spikeguard" in str(program.graph)
    assert all("aten" in str(n.target) for n in plain.graph.nodes if n.op == "call_function")
    for images in (x, x[:, :3]):
        assert torch.equal(plain.module()(images), net(images))
        assert torch.equal(program.module()(images), net(images))
    assert len(net[1](net[0](x)).unique()) == 2


def test_onnx_gets_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.onnx._internal.exporter import _flags

    net, x = user_net(), torch.rand(3, 5, 4)
    monkeypatch.setattr(_flags, "_is_onnx_exporting", True)  # as torch.onnx.export sets it while it traces
    program = torch.export.export(net, (x,))
    assert "spikeguard" not in str(program.graph)
    assert torch.equal(program.module()(x), net(x))


def test_what_no_graph_can_hold_is_refused_in_one_line() -> None:
    net, x = user_net(), torch.rand(3, 5, 4)
    first = sg.neurons.spiking(net)["1"]
    first.noise = Noise(0.1)

    def refused(reason: str) -> None:
        for export in (torch.export.export, torch.jit.trace):
            with pytest.raises(sg.UserError, match=f"export: a layer of neurons {reason}") as error:
                export(net, (x,))
            assert "\n" not in str(error.value)

    net.train()
    refused("draws noise: call model.eval")
    net.eval()
    with sg.tap(net) as opened:
        refused("has an open tap or guard: close it")
        net(x)
        assert len(opened.potentials) == 2
    assert all(not layer.requests for layer in sg.neurons.spiking(net).values())  # an export copies lists
    torch.export.export(net, (x,))
    first.spec = Neuron(surrogate=Observing())
    refused("has a surrogate that adapts")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_network_holds_the_operator() -> None:
    net, x = user_net(), torch.rand(3, 5, 4)
    traced = torch.jit.trace(net, (x,))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    other = torch.rand(3, 5, 4)
    assert torch.equal(torch.jit.load(file)(other), net(other))


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("shape", [(3, 4, 2, 3, 3), (1, 4, 5)])
def test_the_operator_is_the_layer(
    reset: Literal["hard", "soft"], detach: bool, shape: tuple[int, ...]
) -> None:
    layer = Spiking(Neuron("plif", decay=0.6, reset=reset, detach_reset=detach, learn_threshold=True))
    current = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 1.5
    if len(shape) == 5:
        current = current.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2])
    current.requires_grad_()
    scalars = (3, reset == "hard", detach, 0.0, operator.key(layer.spec.surrogate))
    given = (current, layer.decay_logit, layer.threshold)
    spikes = layer(current, 3)
    made = operator.spikes(current, layer.decay, layer.threshold, scalars)
    assert torch.equal(made, spikes)
    assert 0 < float(spikes.detach().mean()) < 1
    weight = torch.rand(spikes.shape, generator=torch.Generator().manual_seed(2))
    own, found = (torch.autograd.grad((weight * s).sum(), given) for s in (spikes, made))
    assert all(torch.equal(a, b) for a, b in zip(own, found, strict=True))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as fake:
        like = operator.spikes(fake.from_tensor(current), layer.decay, layer.threshold, scalars)
    assert (like.shape, like.stride(), like.dtype) == (made.shape, made.stride(), made.dtype)


def test_a_second_derivative_is_refused_in_one_line() -> None:
    current = torch.rand(2, 3, 4).requires_grad_()
    scalars = (2, True, False, 0.0, operator.key(Atan()))
    spikes = operator.spikes(current, torch.tensor(0.5), torch.tensor(1.0), scalars)
    (g,) = torch.autograd.grad(spikes.sum(), current, create_graph=True)
    with pytest.raises(sg.UserError, match="spikes have no second derivative") as error:
        g.sum().backward()
    assert "\n" not in str(error.value)


def test_a_surrogate_of_another_process_is_only_missed_by_a_gradient() -> None:
    current = torch.rand(2, 3, 4).requires_grad_()
    spikes = operator.spikes(
        current, torch.tensor(0.5), torch.tensor(1.0), (2, True, False, 0.0, "of another")
    )
    with pytest.raises(sg.UserError, match="no gradient here: the surrogate of another is of the process"):
        spikes.sum().backward()


def test_a_layer_is_plain_unless_something_changes_what_it_computes() -> None:
    layer = Spiking(Neuron(), Noise(0.2))
    assert not layer.is_plain()
    assert layer.eval().is_plain()
    with sg.tap(layer):
        assert not layer.is_plain()
    assert not Spiking(Neuron(), Noise(0.2, at_eval=True)).eval().is_plain()
    assert not Spiking(Neuron(surrogate=Observing())).eval().is_plain()


class Observing(Atan):
    """Chooses its sharpness by what it sees."""

    def observe(self, u: Tensor) -> Tensor:
        return u
