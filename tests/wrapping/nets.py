"""Small networks of every framework, each in the style of its tutorials; imported where it is installed."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

Raw = Any  # modules of frameworks without types


def spikingjelly(multistep: bool = False, loop: int = 0) -> nn.Module:
    """Convolution, neurons, readout; ``multistep``: takes ``[T, N, ...]``; ``loop``: has steps of its own."""
    base = "spikingjelly.activation_based"
    layer: Raw = import_module(f"{base}.layer")
    neuron: Raw = import_module(f"{base}.neuron")
    functional: Raw = import_module(f"{base}.functional")
    body = nn.Sequential(
        layer.Conv2d(1, 4, 3, padding=1),
        neuron.LIFNode(detach_reset=True),
        layer.Flatten(),
        layer.Linear(256, 10),
    )
    if multistep:
        functional.set_step_mode(body, "m")
    return Scaled(body, 6.0, loop)


def lively(layer: nn.Linear, gain: float = 5.0) -> nn.Linear:
    """The layer with weights so large that neurons behind it fire."""
    with torch.no_grad():
        layer.weight.mul_(gain)
    return layer


class Scaled(nn.Module):
    """A network with a gain in front; ``steps``: it is run so often, and answers with the mean."""

    def __init__(self, body: nn.Module, gain: float, steps: int = 0) -> None:
        super().__init__()
        self.body, self.gain, self.steps = body, gain, steps

    def forward(self, x: Tensor) -> Tensor:
        if not self.steps:
            answer: Tensor = self.body(self.gain * x)
            return answer
        return torch.stack([self.body(self.gain * x) for _ in range(self.steps)]).mean(0)


class SnnTorch(nn.Module):
    """The loop over time inside, its answer the spikes and membranes of all steps."""

    def __init__(self, num_steps: int = 5) -> None:
        super().__init__()
        snn: Raw = import_module("snntorch")
        self.num_steps = num_steps
        self.fc1, self.lif1 = nn.Linear(64, 20), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(20, 10), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes, membranes = [], []
        for _ in range(self.num_steps):
            spike, first = self.lif1(self.fc1(5 * x.flatten(1)), first)
            out, second = self.lif2(self.fc2(5 * spike), second)
            spikes.append(out)
            membranes.append(second)
        return torch.stack(spikes), torch.stack(membranes)


def snntorch_hidden() -> nn.Module:
    """Neurons that keep their membranes; one call is one step."""
    snn: Raw = import_module("snntorch")
    return nn.Sequential(
        nn.Flatten(),
        lively(nn.Linear(64, 20)),
        snn.Leaky(beta=0.9, init_hidden=True),
        lively(nn.Linear(20, 10)),
        snn.Leaky(beta=0.9, init_hidden=True, output=True),
    )


def norse() -> nn.Module:
    """Explicit state: one call is one step and hands its state back."""
    torch_: Raw = import_module("norse.torch")
    return torch_.SequentialState(  # type: ignore[no-any-return]
        nn.Flatten(), lively(nn.Linear(64, 20), 99.0), torch_.LIFCell(), nn.Linear(20, 10), torch_.LICell()
    )


def sinabs(squeeze: bool = False) -> nn.Module:
    """Batch first; ``squeeze``: time folded into the batch."""
    layers: Raw = import_module("sinabs.layers")
    if squeeze:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            layers.IAFSqueeze(batch_size=1),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
    return nn.Sequential(
        nn.Flatten(2), nn.Linear(64, 20), layers.LIF(tau_mem=5.0, spike_threshold=0.2), nn.Linear(20, 10)
    )


NETS: dict[str, tuple[str, Callable[[], nn.Module], str]] = {
    "spikingjelly, single step": ("spikingjelly", spikingjelly, "timesteps=T"),
    "spikingjelly, multi step": (
        "spikingjelly",
        lambda: spikingjelly(multistep=True),
        "timesteps=T, layout='time_first'",
    ),
    "spikingjelly, own loop": ("spikingjelly", lambda: spikingjelly(loop=4), ""),
    "snntorch, own loop": ("snntorch", SnnTorch, "output=0"),
    "snntorch, hidden state": ("snntorch", snntorch_hidden, "timesteps=T, output=0"),
    "norse": ("norse", norse, "timesteps=T, output=0, state=1"),
    "sinabs": ("sinabs", sinabs, "timesteps=T, layout='batch_first'"),
    "sinabs, squeezed": ("sinabs", lambda: sinabs(squeeze=True), "timesteps=T, layout='folded'"),
}
"""Name -> package, factory, and the arguments of ``wrap`` that it needs."""
