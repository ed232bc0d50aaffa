"""How each layer is written to a NIR graph. A layer that is not in the table is refused by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikeguard.errors import UserError
from spikeguard.interchange.builder import GraphBuilder, Neurons, Wire
from spikeguard.interchange.folding import as_affine
from spikeguard.interchange.layers import Normalize
from spikeguard.interchange.network import ImportedNetwork, SumPool
from spikeguard.networks.blocks import Blocks
from spikeguard.networks.classifier import Classifier, Folded
from spikeguard.networks.convolution import Conv
from spikeguard.networks.small import Stage, Stages
from spikeguard.networks.vgg import VGG
from spikeguard.networks.wrn import WRN, Block
from spikeguard.neurons import IF, LIF, PLIF, Spiking

M = TypeVar("M", bound=nn.Module)
Emitter = Callable[[GraphBuilder, M, Wire], Wire]
EMITTERS: dict[type[nn.Module], Emitter[nn.Module]] = {}
"""By exact class: a subclass may compute something else."""


def emits(*kinds: type[M]) -> Callable[[Emitter[M]], Emitter[M]]:
    """Register the function that writes layers of these classes."""

    def register(function: Emitter[M]) -> Emitter[M]:
        for kind in kinds:
            EMITTERS[kind] = cast(Emitter[nn.Module], function)
        return function

    return register


def emit(builder: GraphBuilder, module: nn.Module, wire: Wire) -> Wire:
    """Write a module behind ``wire``; UserError if NIR has nothing like it."""
    function = EMITTERS.get(type(module))
    if function is None:
        raise UserError(f"to_nir: NIR has no {type(module).__name__}, or spikeguard cannot write one")
    return function(builder, module, wire)


@emits(nn.Conv2d, Conv)
def _conv(builder: GraphBuilder, conv: nn.Conv2d, wire: Wire) -> Wire:
    return builder.convolution(wire, conv)


@emits(nn.Linear)
def _linear(builder: GraphBuilder, linear: nn.Linear, wire: Wire) -> Wire:
    return builder.linear(wire, linear)


@emits(nn.BatchNorm1d, nn.BatchNorm2d)
def _norm(builder: GraphBuilder, norm: _BatchNorm, wire: Wire) -> Wire:
    return builder.channelwise(wire, *as_affine(norm, "to_nir"))


@emits(nn.Identity, nn.Dropout, nn.Dropout2d)
def _nothing(builder: GraphBuilder, module: nn.Module, wire: Wire) -> Wire:
    return wire


@emits(nn.AvgPool2d)
def _average(builder: GraphBuilder, pool: nn.AvgPool2d, wire: Wire) -> Wire:
    kernel, stride = _sides(pool.kernel_size), _sides(pool.stride)
    if _sides(pool.padding) != (0, 0) or pool.ceil_mode or pool.divisor_override or len(wire.shape) != 3:
        raise UserError(f"to_nir: tools disagree on {pool}: no padding, ceil_mode or divisor_override")
    return builder.average(wire, kernel, stride)


@emits(nn.AdaptiveAvgPool2d)
def _average_all(builder: GraphBuilder, pool: nn.AdaptiveAvgPool2d, wire: Wire) -> Wire:
    if pool.output_size not in (1, (1, 1)) or len(wire.shape) != 3:
        raise UserError(f"to_nir: NIR has no {pool}, except to one pixel")
    return builder.average(wire, _sides(wire.shape[1:]), (1, 1))


@emits(Normalize)
def _normalize(builder: GraphBuilder, layer: Normalize, wire: Wire) -> Wire:
    return _normalized(builder, wire, layer.mean, layer.std)


def _normalized(builder: GraphBuilder, wire: Wire, mean: Tensor, std: Tensor) -> Wire:
    """``(x - mean) / std``, a layer of its own: what follows may pad with zeros."""
    mean, std = (values.detach().double().flatten().expand(wire.shape[0]) for values in (mean, std))
    if not (mean != 0).any() and (std == 1).all():
        return wire
    return builder.settle(builder.channelwise(wire, 1 / std, -mean / std))


@emits(SumPool)
def _sum(builder: GraphBuilder, pool: SumPool, wire: Wire) -> Wire:
    wire = builder.average(wire, pool.kernel, pool.stride)
    area = float(pool.kernel[0] * pool.kernel[1])
    return Wire(wire.sources, wire.shape, scale=wire.scale * area)


@emits(nn.Flatten)
def _flatten(builder: GraphBuilder, flatten: nn.Flatten, wire: Wire) -> Wire:
    return _flat(builder, flatten, wire, leading=2)


def _flat(builder: GraphBuilder, flatten: nn.Flatten, wire: Wire, leading: int) -> Wire:
    dims = leading + len(wire.shape)
    first, last = (d + dims if d < 0 else d for d in (flatten.start_dim, flatten.end_dim))
    if first != leading or last != dims - 1:
        raise UserError(f"to_nir: {flatten} must flatten all of {wire.shape}, from dimension {leading} on")
    return builder.flatten(wire)


@emits(Spiking, LIF, IF, PLIF)
def _spiking(builder: GraphBuilder, layer: Spiking, wire: Wire) -> Wire:
    _refuse(layer)
    if layer.norm is not None:
        wire = builder.channelwise(wire, *as_affine(layer.norm, "to_nir"))
    decay = float(layer.decay.detach())
    wire = builder.neurons(wire, Neurons(decay, float(layer.threshold.detach())))
    return builder.average(wire, (2, 2), (2, 2)) if layer.pool else wire


def _refuse(layer: Spiking) -> None:
    """UserError on what a NIR neuron cannot do."""
    if parts := layer.dynamics.parts():
        raise UserError(f"to_nir: NIR cannot represent {type(parts[0]).__name__} (a change of the neurons)")
    if layer.noise is not None and layer.noise.at_eval and layer.noise.sigma > 0:
        raise UserError(f"to_nir: NIR cannot represent noise in evaluation ({layer.noise})")
    if layer.spec.v_init != 0:
        raise UserError(f"to_nir: NIR cannot represent v_init = {layer.spec.v_init}: potentials start at 0")


@emits(nn.Sequential, Blocks)
def _sequence(builder: GraphBuilder, layers: nn.Module, wire: Wire) -> Wire:
    for layer in layers.children():
        wire = emit(builder, layer, wire)
    return wire


@emits(Folded)
def _folded(builder: GraphBuilder, layers: Folded, wire: Wire) -> Wire:
    for layer in layers:
        wire = _without_time(builder, layer, wire)
    return wire


def _without_time(builder: GraphBuilder, layer: nn.Module, wire: Wire) -> Wire:
    """A layer on ``[N, ...]``."""
    if type(layer) is nn.Flatten:
        return _flat(builder, layer, wire, leading=1)
    return emit(builder, layer, wire)


@emits(Stage)
def _stage(builder: GraphBuilder, stage: Stage, wire: Wire) -> Wire:
    return emit(builder, stage.fire, emit(builder, stage.conv, wire))


@emits(Stages)
def _stages(builder: GraphBuilder, stages: Stages, wire: Wire) -> Wire:
    return builder.flatten(emit(builder, stages.stages, wire))


@emits(VGG)
def _vgg(builder: GraphBuilder, body: VGG, wire: Wire) -> Wire:
    wire = emit(builder, body.features, wire)
    for linear, fire in zip(body.linear, body.fire, strict=True):
        wire = emit(builder, fire, emit(builder, linear, wire))
    return wire


@emits(Block)
def _block(builder: GraphBuilder, block: Block, wire: Wire) -> Wire:
    wire = builder.settle(wire)  # two layers read it
    spikes = emit(builder, block.fire1, wire)
    beside = wire if block.shortcut is None else emit(builder, block.shortcut, spikes)
    deep = emit(builder, block.conv2, emit(builder, block.fire2, emit(builder, block.conv1, spikes)))
    weights = block.join.weight.detach().double()
    parts = []
    for part, weight in zip((beside, deep), weights, strict=True):
        scale = weight.expand(part.shape[0])
        parts.append(builder.channelwise(part, scale, torch.zeros_like(scale)))
    return builder.total(parts)


@emits(WRN)
def _wrn(builder: GraphBuilder, body: WRN, wire: Wire) -> Wire:
    wire = emit(builder, body.fire, emit(builder, body.blocks, emit(builder, body.stem, wire)))
    return builder.flatten(builder.average(wire, _sides(wire.shape[1:]), (1, 1)))


@emits(Classifier)
def _classifier(builder: GraphBuilder, net: Classifier, wire: Wire) -> Wire:
    if len(net.before) > 0:
        raise UserError(
            f"to_nir: NIR cannot represent {type(net.before[0]).__name__} (a change of the input)"
        )
    wire = _normalized(builder, wire, net.mean, net.std)
    return emit(builder, net.head, emit(builder, net.body, wire))


@emits(ImportedNetwork)
def _imported(builder: GraphBuilder, net: ImportedNetwork, wire: Wire) -> Wire:
    readers = Counter(source for sources in net.inputs.values() for source in sources)
    wires = {net.source: wire}
    for name in net.order:
        inputs = [wires[source] for source in net.inputs[name]]
        total = builder.total(inputs) if len(inputs) > 1 else inputs[0]
        written = _without_time(builder, net.layers[name], total)
        wires[name] = written if readers[name] == 1 else builder.settle(written)  # else written twice
    outputs = [wires[source] for source in net.outputs]
    return builder.total(outputs) if len(outputs) > 1 else outputs[0]


def _sides(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
