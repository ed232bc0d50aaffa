"""The same network in other frameworks, written as their users write it, with our weights copied across.

spikingjelly: multi-step neurons over a whole sequence, other layers over time folded into the batch.
snntorch: a loop over time around single-step neurons. Both see the image repeated T times, as their examples
do. They are imported only on use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor, nn

from spikeguard.networks.classifier import Classifier, Folded
from spikeguard.networks.small import Stages
from spikeguard.networks.vgg import VGG
from spikeguard.networks.wrn import WRN, Block
from spikeguard.neurons import Neuron
from spikeguard.surrogates import Atan

NEURON = Neuron(
    decay=0.5, detach_reset=True, surrogate=Atan(2.0)
)  # what all three can express: hard reset to 0, detached


@dataclass(frozen=True)
class Framework:
    """How its users put a network together.

    ``fold`` a layer without state over time, ``fire`` a layer of NEURON, ``run`` the whole over T steps.
    """

    name: str
    fold: Callable[[nn.Module], nn.Module]
    fire: Callable[[], nn.Module]
    run: Callable[[nn.Module, Tensor, int], Tensor]


def installed() -> dict[str, Callable[[], Framework]]:
    """Frameworks that are installed, by name and version; calling one imports it."""
    known = versions()
    return {
        f"{name} {known[name]}": make
        for name, make in (("spikingjelly", _spikingjelly), ("snntorch", _snntorch))
        if name in known
    }


def versions() -> dict[str, str]:
    """What is installed of the frameworks, and of torchattacks, which attacks them."""
    found = {}
    for name in ("spikingjelly", "snntorch", "torchattacks"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _spikingjelly() -> Framework:
    base = "spikingjelly.activation_based"
    neuron, surrogate, folding, functional = (
        import_module(f"{base}.{m}") for m in ("neuron", "surrogate", "layer", "functional")
    )

    def fire() -> nn.Module:
        layer: nn.Module = neuron.LIFNode(
            tau=2.0,
            decay_input=False,
            v_reset=0.0,
            surrogate_function=surrogate.ATan(alpha=2.0),
            detach_reset=True,
            step_mode="m",
        )
        return layer

    def run(body: nn.Module, x: Tensor, timesteps: int) -> Tensor:
        functional.reset_net(body)
        logits: Tensor = body(x.unsqueeze(0).repeat(timesteps, *[1] * x.dim())).mean(0)
        return logits

    return Framework("spikingjelly", folding.SeqToANNContainer, fire, run)


def _snntorch() -> Framework:
    snntorch, surrogate = import_module("snntorch"), import_module("snntorch.surrogate")

    def fire() -> nn.Module:
        layer: nn.Module = snntorch.Leaky(
            beta=0.5,
            threshold=1.0,
            spike_grad=surrogate.atan(alpha=2.0),
            init_hidden=True,
            reset_mechanism="zero",
        )
        return layer

    def run(body: nn.Module, x: Tensor, timesteps: int) -> Tensor:
        for layer in body.modules():
            if isinstance(layer, snntorch.Leaky):
                layer.reset_mem()
        return torch.stack([body(x) for _ in range(timesteps)]).mean(0)

    return Framework("snntorch", lambda layer: layer, fire, run)


class Twin(nn.Module):
    """The network in that framework, with the same weights; ``autocast`` is its half precision."""

    def __init__(self, net: Classifier, framework: Framework) -> None:
        super().__init__()
        self.framework, self.timesteps = framework, net.timesteps
        self.autocast: torch.dtype | None = None
        self.register_buffer("mean", net.mean.clone())
        self.register_buffer("std", net.std.clone())
        self.body = nn.Sequential(_of(net.body, framework), framework.fold(_copy(net.head)))
        self.train(net.training)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std  # type: ignore[operator]
        with torch.autocast(
            x.device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None
        ):
            return self.framework.run(self.body, x, self.timesteps).float()


def _copy(layer: nn.Module) -> nn.Module:
    """A plain layer of torch with the same settings and values, contiguous as its users have it."""
    with torch.no_grad():
        if isinstance(layer, nn.Conv2d):
            window = (layer.kernel_size, layer.stride, layer.padding)
            channels = (layer.in_channels, layer.out_channels)
            made: nn.Module = nn.Conv2d(*channels, *window, bias=layer.bias is not None)  # type: ignore[arg-type]
        elif isinstance(layer, nn.Linear):
            made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        elif isinstance(layer, nn.BatchNorm2d):
            made = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum)
        else:
            raise TypeError(f"no twin of {type(layer).__name__}")
        for name, value in layer.state_dict().items():
            made.get_buffer(name).copy_(value) if name in dict(made.named_buffers()) else made.get_parameter(
                name
            ).copy_(value)
    return made.to(next(layer.parameters()).device)


def _of(module: nn.Module, f: Framework) -> nn.Module:
    if isinstance(module, Folded):
        return nn.Sequential(*(f.fold(_copy(layer)) for layer in module))
    if isinstance(module, Stages):
        layers: list[nn.Module] = []
        for stage in module.stages:
            layers += [_of(stage.conv, f), f.fold(_copy(stage.norm)), f.fire()]  # type: ignore[arg-type]
            if stage.fire.pool:  # type: ignore[union-attr]
                layers.append(f.fold(nn.AvgPool2d(2)))
        return nn.Sequential(*layers, f.fold(nn.Flatten()))
    if isinstance(module, VGG):
        hidden = [layer for linear in module.linear for layer in (_of(linear, f), f.fire())]
        return nn.Sequential(_of(module.features, f), *hidden)
    if isinstance(module, WRN):
        pooled = (f.fold(nn.AdaptiveAvgPool2d(1)), f.fold(nn.Flatten()))
        return nn.Sequential(
            _of(module.stem, f),
            *(_Block(b, f) for b in module.blocks),  # type: ignore[arg-type]
            f.fold(_copy(module.norm)),
            f.fire(),
            *pooled,
        )
    raise TypeError(f"no twin of {type(module).__name__}")


class _Block(nn.Module):
    def __init__(self, block: Block, f: Framework) -> None:
        super().__init__()
        self.start = nn.Sequential(f.fold(_copy(block.norm1)), f.fire())
        self.rest = nn.Sequential(
            _of(block.conv1, f), f.fold(_copy(block.norm2)), f.fire(), _of(block.conv2, f)
        )
        self.shortcut = None if block.shortcut is None else _of(block.shortcut, f)
        self.weight = nn.Parameter(block.join.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.start(x)
        beside = x if self.shortcut is None else self.shortcut(spikes)
        joined: Tensor = self.weight[0] * beside + self.weight[1] * self.rest(spikes)
        return joined
