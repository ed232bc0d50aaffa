"""The networks of TET: ResNet-19 and VGGSNN (VGG-9), with and without pooling.

Neurons there keep half of their potential, reset to 0 and fire above 1.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from spikeguard.errors import UserError
from spikeguard.interchange.layers import linear
from spikeguard.interchange.layout import Chain, Layout, Settings
from spikeguard.interchange.network import ImportedNetwork
from spikeguard.interchange.state_files import State
from spikeguard.neurons import Neuron

SOURCE = "Deng et al., 'Temporal efficient training of spiking neural network', ICLR 2022"
ABOVE_ONE = float(torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)))
"""The threshold of neurons that fire above 1, and not at it."""
NEURON = Neuron(decay=0.5, threshold=ABOVE_ONE, reset="hard")
POOLED, STRIDED = (0, 1, 3, 4, 6, 7, 9, 10), (0, 1, 2, 3, 4, 5, 6, 7)
"""Where the convolutions of VGGSNN stand, with pooling between them and without."""


def vggsnn(state: State, settings: Settings) -> ImportedNetwork:
    """Eight convolutions and a linear layer; pooling, or strides instead, follow from the names."""
    pooled = state.has("features.10.fwd.module.0.weight")
    chain = Chain(state, settings)
    wire = chain.normalize()
    for index, place in enumerate(POOLED if pooled else STRIDED):
        name, shrinks = f"features.{place}", index % 2 == 1
        stride = 2 if shrinks and not pooled else 1
        wire = chain.conv_norm(wire, f"{name}.fwd.module.0", f"{name}.fwd.module.1", stride)
        wire = chain.fire(f"{name}.act", wire)
        if shrinks and pooled:
            wire = chain.add(f"pool{index}", nn.AvgPool2d(2), wire)
    head = linear(state, "classifier.module")
    channels = state.take("features.7.fwd.module.0.weight", 4).shape[0]
    side = 16 * math.isqrt(max(1, head.in_features // channels))
    wire = chain.add("head", head, chain.add("flatten", nn.Flatten(), wire))
    inputs = state.take("features.0.fwd.module.0.weight", 4).shape[1]
    return chain.finish(wire, (inputs, side, side))


def resnet19(state: State, settings: Settings) -> ImportedNetwork:
    """ResNet-19: neurons after each sum of a block, a hidden linear layer."""
    blocks = [state.count(f"layer{k}.#.") for k in (1, 2, 3)]
    if 0 in blocks:
        raise UserError(f"{state.where}: ResNet-19 has three groups of blocks, this network has {blocks}")
    chain = Chain(state, settings)
    wire = chain.fire("spike", chain.conv_norm(chain.normalize(), "conv1", "bn1.bn"))
    for group, count in enumerate(blocks, 1):
        for k in range(count):
            wire = _block(chain, f"layer{group}.{k}", wire, stride=2 if group > 1 and k == 0 else 1)
    wire = chain.add("flatten", nn.Flatten(), chain.add("avgpool", nn.AdaptiveAvgPool2d(1), wire))
    wire = chain.fire("spike1", chain.add("fc1", linear(state, "fc1"), wire))
    wire = chain.add("fc2", linear(state, "fc2"), wire)
    return chain.finish(wire, (state.take("conv1.weight", 4).shape[1], 32, 32))


def _block(chain: Chain, name: str, wire: str, stride: int) -> str:
    """Two convolutions beside a shortcut; neurons behind the first and behind the sum."""
    inner = chain.fire(f"{name}.spike1", chain.conv_norm(wire, f"{name}.conv1", f"{name}.bn1.bn", stride))
    deep = chain.conv_norm(inner, f"{name}.conv2", f"{name}.bn2.bn")
    if chain.state.has(f"{name}.downsample.conv.weight"):
        wire = chain.conv_norm(wire, f"{name}.downsample.conv", f"{name}.downsample.bn", stride)
    return chain.fire(f"{name}.spike2", deep, wire)


RENAMES = (  # a layer, its copy in a container for sequences, and that container's copy
    (r"\.seqbn\.module\.", ".bn."),
    (r"downsample\.layer\.module\.", "downsample.conv."),
    (r"downsample\.bn\.bn\.", "downsample.bn."),
    (r"conv(\d)_s\.layer\.module\.", r"conv\1."),
    (r"conv(\d)_s\.bn\.", r"bn\1."),
    (r"fc(\d)_s\.layer\.module\.", r"fc\1."),
)
LAYOUTS = {
    "tet/vggsnn": Layout(SOURCE, NEURON, vggsnn),
    "tet/resnet19": Layout(SOURCE, NEURON, resnet19, RENAMES),
}
