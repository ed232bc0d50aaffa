"""TGO on networks of other frameworks, in loops as their users write them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import spikeguard as sg
from spikeguard import adapters
from spikeguard.errors import UserError

Raw = Any
"""Modules of frameworks, which have no types."""
STEPS = 3


class Sequence(nn.Module):
    """SpikingJelly, time first, whole sequences; ``kind``: of the checkpoint around the first part."""

    def __init__(self, kind: str = "none") -> None:
        super().__init__()
        neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
        self.kind = kind
        self.first = nn.Sequential(nn.Linear(6, 12), neuron.LIFNode(step_mode="m"))
        self.second = nn.Sequential(nn.Linear(12, 12), neuron.LIFNode(step_mode="m"))
        self.head = nn.Linear(12, 3)

    def start(self, h: Tensor) -> Tensor:
        """The first part; computed again, it has to begin without a state again."""
        adapters.reset(self)
        spikes: Tensor = self.first(h)
        return spikes

    def forward(self, x: Tensor) -> Tensor:
        h = x.expand(STEPS, *x.shape)
        if self.kind == "none":
            h = self.start(h)
        else:
            h = checkpoint(self.start, h, use_reentrant=self.kind == "reentrant")
        logits: Tensor = self.head(self.second(h).mean(0))
        return logits


class Steps(nn.Module):
    """snnTorch, stepped in a loop."""

    def __init__(self) -> None:
        super().__init__()
        snntorch = pytest.importorskip("snntorch")
        self.layers = nn.ModuleList([nn.Linear(6, 12), nn.Linear(12, 12)])
        self.neurons = nn.ModuleList([snntorch.Leaky(beta=0.6), snntorch.Leaky(beta=0.6)])
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        states: list[Raw] = [0.0, 0.0]
        for k, neuron in enumerate(self.neurons):
            module: Raw = neuron
            states[k] = module.init_leaky()
        out = []
        for _ in range(STEPS):
            h = x
            for k, (layer, neuron) in enumerate(zip(self.layers, self.neurons, strict=True)):
                h, states[k] = neuron(layer(h), states[k])
            out.append(h)
        logits: Tensor = self.head(torch.stack(out).mean(0))
        return logits


class Norse(nn.Module):
    """norse, stepped in a loop with its states in the open."""

    def __init__(self) -> None:
        super().__init__()
        norse = pytest.importorskip("norse.torch")
        self.layers = nn.ModuleList([nn.Linear(6, 12), nn.Linear(12, 12)])
        self.neurons = nn.ModuleList([norse.LIFCell(), norse.LIFCell()])
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        states: list[Raw] = [None, None]
        out = []
        for _ in range(STEPS):
            h = 20 * x
            for k, (layer, neuron) in enumerate(zip(self.layers, self.neurons, strict=True)):
                h, states[k] = neuron(20 * layer(h), states[k])
            out.append(h)
        logits: Tensor = self.head(torch.stack(out).mean(0))
        return logits


class Sinabs(nn.Module):
    """sinabs, batch first."""

    def __init__(self) -> None:
        super().__init__()
        layers = pytest.importorskip("sinabs.layers")
        self.body = nn.Sequential(nn.Linear(6, 12), layers.LIF(tau_mem=5.0), nn.Linear(12, 12), layers.IAF())
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        adapters.reset(self)
        h = (20 * x)[:, None].expand(len(x), STEPS, 6)
        logits: Tensor = self.head(self.body(h).mean(1))
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "spikingjelly": Sequence,
    "snntorch": Steps,
    "norse": Norse,
    "sinabs": Sinabs,
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = NETWORKS[name]()
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Linear):  # sinabs shares one threshold between all networks
                layer.weight.mul_(2.0)
                layer.bias.mul_(2.0)
    return net.train()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(8, 6), torch.randint(0, 3, (8,))


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("side", ["both", "below"])
def test_the_penalty_is_that_of_the_potentials(name: str, side: str) -> None:
    net, (x, y) = made(name), batch()
    with sg.tap(net, grad=True) as opened:
        loss = F.cross_entropy(net(x), y)
    hinges = [
        ((0.5 - u.abs()).clamp(min=0) * (1.0 if side == "both" else u < 0)).mean()
        for u in opened.potentials.values()
    ]
    assert len(hinges) == 2
    expected = 0.3 * torch.stack(hinges).sum()
    (loss + expected).backward()
    before = gradients(net)
    net.zero_grad()
    with sg.guard(net, total_steps=2, steps_done=1, sigma=0.0, lambda_max=0.6, side=side) as g:  # type: ignore[arg-type]
        loss = F.cross_entropy(net(x), y)
        penalty = g.penalty()
        (loss + penalty).backward()
    assert float(penalty.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(penalty.detach()) > 0
    for a, b in zip(gradients(net), before, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loop_trains_and_the_network_is_its_own_again(name: str) -> None:
    net, (x, y) = made(name), batch()
    net(x)  # frameworks make some attributes at the first call
    modules = {key: (type(m), sorted(vars(m))) for key, m in net.named_modules()}
    names = list(net.state_dict())
    step = torch.optim.AdamW(net.parameters())
    with sg.guard(net, total_steps=3, sigma=0.3, lambda_max=0.0) as g:
        for _ in range(3):
            (F.cross_entropy(net(x), y) + g.penalty()).backward()
            step.step()
            g.step()
        assert not torch.equal(net(x), net(x)), "noise while it trains"
        g.clear()
        net.eval()
        assert torch.equal(net(x), net(x)), "none in evaluation"
        sg.pgd(net, x, y, sg.Linf(0.05), steps=2, restarts=1)
        adapters.reset(net)
        copy.deepcopy(net).train()(x)
        with pytest.raises(UserError, match="without a forward pass"):
            g.penalty()
    assert list(net.state_dict()) == names
    assert {key: (type(m), sorted(vars(m))) for key, m in net.named_modules()} == modules


@pytest.mark.parametrize("kind", ["non-reentrant", "reentrant"])
def test_checkpoints_of_whole_sequences_give_the_gradients_of_none(kind: str) -> None:
    def run(kind: str) -> list[Tensor]:
        torch.manual_seed(0)
        net, (x, y) = Sequence(kind).train(), batch()
        with sg.guard(net, total_steps=2, steps_done=1, lambda_max=2.0) as g:
            torch.manual_seed(3)
            (F.cross_entropy(net(x.requires_grad_()), y) + g.penalty()).backward()
            g.step()
        return gradients(net)

    for a, b in zip(run(kind), run("none"), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["spikingjelly", "snntorch"])
def test_harden_takes_networks_of_frameworks(name: str) -> None:
    (x, y), settings = batch(), sg.training.Hardening(epochs=1, at=sg.AT(eps=0.02, steps=1))
    done = sg.harden(made(name), [(x, y), (x, y)], settings)
    assert done.record.epochs[0].penalty > 0
