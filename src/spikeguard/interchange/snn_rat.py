"""The networks of SNN-RAT: VGG-11 and WRN-16, which ``sg.build`` has, too.

Neurons there do not leak, reset to 0 and fire at 1. VGG-11's convolutions have biases, which the batch norms
behind them take up.
"""

from __future__ import annotations

import math

from spikeguard.errors import UserError
from spikeguard.interchange.layers import linear, norm
from spikeguard.interchange.layout import Built, Layout, Settings
from spikeguard.interchange.state_files import State
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Neuron

SOURCE = "Ding et al., 'SNN-RAT: Robustness-enhanced spiking neural network', NeurIPS 2022"
NEURON = Neuron(decay=1.0, threshold=1.0, reset="hard")
GROUPS = (1, 2, 3, 2)
"""Convolutions of VGG-11 in each of its groups."""


def vgg11(state: State, settings: Settings) -> Classifier:
    """VGG-11; hidden layers and the size of an image follow from the weights."""
    if not state.has("layer4.3.weight") or state.has("layer5.0.weight") or state.has("layer1.3.weight"):
        raise UserError(f"{state.where}: not VGG-11 of SNN-RAT; its VGG-5, 13, 16 and 19 are not supported")
    hidden, hidden2, head = (linear(state, f"classifier.{k}") for k in (1, 3, 5))
    side = 8 * math.isqrt(max(1, hidden.in_features // 512))
    shape = (state.take("layer1.0.weight", 4).shape[1], side, side)
    built = Built.of(
        "vgg11",
        state,
        settings,
        shape,
        head.out_features,
        {"hidden": (hidden.out_features, hidden2.out_features)},
    )
    names = [f"layer{group}.{3 * k}" for group, count in enumerate(GROUPS, 1) for k in range(count)]
    for stage, name in enumerate(names):
        own = f"body.features.stages.{stage}"
        layer, index = name.split(".")
        after = norm(state, f"{layer}.{int(index) + 1}")
        if after.running_mean is not None and state.has(f"{name}.bias"):
            after.running_mean -= state.take(f"{name}.bias", 1)
        built.put(f"{own}.conv.0.weight", state.take(f"{name}.weight", 4))
        built.put_layer(f"{own}.norm", after)
    built.put_layer("body.linear.0.0", hidden)
    built.put_layer("body.linear.1.0", hidden2)
    built.put_layer("head", head)
    return built.finish()


def wrn16(state: State, settings: Settings) -> Classifier:
    """WRN-16; its width follows from the weights, images are 32x32 unless named otherwise."""
    if (blocks := state.count("block1.#.")) != 2:
        raise UserError(f"{state.where}: WRN-16 has 2 blocks a group, this network has {blocks}")
    stem, head = state.take("conv1.weight", 4), linear(state, "fc")
    widen = state.take("block1.0.conv1.weight", 4).shape[0] // 16
    built = Built.of("wrn16", state, settings, (stem.shape[1], 32, 32), head.out_features, {"widen": widen})
    built.put("body.stem.0.weight", stem)
    for index in range(6):
        own, name = f"body.blocks.{index}", f"block{index // 2 + 1}.{index % 2}"
        for k in (1, 2):
            built.put(f"{own}.conv{k}.0.weight", state.take(f"{name}.conv{k}.weight", 4))
            built.put_layer(f"{own}.norm{k}", norm(state, f"{name}.bn{k}"))
        if state.has(f"{name}.convShortcut.weight"):
            built.put(f"{own}.shortcut.0.weight", state.take(f"{name}.convShortcut.weight", 4))
        built.put(f"{own}.join.weight", state.take(f"{name}.convex.comb", 1))
    built.put_layer("body.norm", norm(state, "bn1"))
    built.put_layer("head", head)
    return built.finish()


LAYOUTS = {"snn-rat/vgg11": Layout(SOURCE, NEURON, vgg11), "snn-rat/wrn16": Layout(SOURCE, NEURON, wrn16)}
