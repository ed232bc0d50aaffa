"""SEW-ResNet, of its authors' code and of spikingjelly: blocks whose spikes are added to their input.

Neurons there do not leak, reset to 0 and fire at 1. The depth follows from the names: 18 and 34 have two
convolutions a block, 50, 101 and 152 three.
"""

from __future__ import annotations

from torch import nn

from spikeguard.errors import UserError
from spikeguard.interchange.layers import linear
from spikeguard.interchange.layout import Chain, Layout, Settings
from spikeguard.interchange.network import ImportedNetwork
from spikeguard.interchange.state_files import State
from spikeguard.neurons import Neuron
from spikeguard.surrogates import Atan

SOURCE = "Fang et al., 'Deep residual learning in spiking neural networks', NeurIPS 2021"
NEURON = Neuron(kind="if", threshold=1.0, reset="hard", detach_reset=True, surrogate=Atan(2.0))


def resnet(state: State, settings: Settings) -> ImportedNetwork:
    """SEW-ResNet that adds; networks that multiply (AND, IAND) have the same names, so the layout says it."""
    blocks = [state.count(f"layer{k}.#.") for k in (1, 2, 3, 4)]
    if 0 in blocks:
        raise UserError(f"{state.where}: SEW-ResNet has four groups of blocks, this network has {blocks}")
    if learned := sorted(name for name in state.tensors if name.endswith(".w")):
        raise UserError(f"{state.where}: {learned[0]}: neurons that learn their decay are not supported")
    chain = Chain(state, settings)
    wire = chain.fire("sn1", chain.conv_norm(chain.normalize(), "conv1", "bn1", stride=2))
    wire = chain.add("maxpool", nn.MaxPool2d(3, 2, 1), wire)
    for group, count in enumerate(blocks, 1):
        for k in range(count):
            wire = _block(chain, f"layer{group}.{k}", wire, stride=2 if group > 1 and k == 0 else 1)
    wire = chain.add("flatten", nn.Flatten(), chain.add("avgpool", nn.AdaptiveAvgPool2d(1), wire))
    wire = chain.add("fc", linear(state, "fc"), wire)
    return chain.finish(wire, (state.take("conv1.weight", 4).shape[1], 224, 224))


def _block(chain: Chain, name: str, wire: str, stride: int) -> str:
    """The spikes of two or three convolutions plus those of a shortcut."""
    state = chain.state
    count = 3 if state.has(f"{name}.conv3.weight") else 2
    strides = [1, stride, 1] if count == 3 else [stride, 1]
    deep = wire
    for k, step in enumerate(strides, 1):
        deep = chain.fire(f"{name}.sn{k}", chain.conv_norm(deep, f"{name}.conv{k}", f"{name}.bn{k}", step))
    if state.has(f"{name}.downsample.conv.weight"):
        shortcut = chain.conv_norm(wire, f"{name}.downsample.conv", f"{name}.downsample.bn", stride)
        wire = chain.fire(f"{name}.downsample.sn", shortcut)
    return chain.add(f"{name}.sum", nn.Identity(), deep, wire)


RENAMES = (  # the authors keep layers in containers for sequences
    (r"conv(\d)\.module\.0\.", r"conv\1."),
    (r"conv(\d)\.module\.1\.", r"bn\1."),
    (r"downsample\.0\.module\.0\.", "downsample.conv."),
    (r"downsample\.0\.module\.1\.", "downsample.bn."),
    (r"downsample\.0\.", "downsample.conv."),
    (r"downsample\.1\.", "downsample.bn."),
)
LAYOUTS = {"sew/resnet-add": Layout(SOURCE, NEURON, resnet, RENAMES)}
