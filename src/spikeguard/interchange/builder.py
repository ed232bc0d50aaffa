"""A NIR graph, built layer by layer. Numbers stay in float64 until ``rounded``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from spikeguard.errors import UserError
from spikeguard.interchange.conventions import Convention
from spikeguard.interchange.folding import channelwise, dense, fold
from spikeguard.interchange.optional import nir

if TYPE_CHECKING:
    from nir import NIRGraph, NIRNode


@dataclass(frozen=True)
class Weights:
    """A linear layer that is not written yet, so that what follows can fold into it."""

    weight: Tensor
    bias: Tensor
    inputs: tuple[str, ...]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Wire:
    """What the next layer gets: the sum of ``sources``, times ``scale``, of that shape (no time, no batch).

    With ``pending``, the sources are not written yet.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    pending: Weights | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Neurons:
    """The constants of a layer of neurons."""

    decay: float
    threshold: float


class GraphBuilder:
    """Adds nodes one after the other; their names sort in the order in which they run."""

    def __init__(self, convention: Convention, dt: float) -> None:
        self.convention, self.dt = convention, dt
        self.nodes: dict[str, NIRNode] = {}
        self.edges: list[tuple[str, str]] = []

    def add(self, kind: str, node: NIRNode, sources: tuple[str, ...]) -> str:
        """Add a node that gets the sum of ``sources``; returns its name."""
        name = f"n{len(self.nodes):03d}_{kind}"
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name

    def input(self, shape: tuple[int, ...]) -> Wire:
        """The graph's input."""
        name = self.add("input", nir().Input(input_type=np.array(shape)), ())
        return Wire((name,), shape)

    def convolution(self, wire: Wire, conv: nn.Conv2d) -> Wire:
        """A convolution, in one group: NIR cannot write the shapes of grouped ones."""
        if len(wire.shape) != 3 or conv.padding_mode != "zeros":
            raise UserError(f"to_nir: NIR has no {conv} on an input of shape {wire.shape}")
        if wire.shape[0] != conv.in_channels:
            raise UserError(f"to_nir: the network cannot run: {conv} on an input of shape {wire.shape}")
        if len(set(conv.kernel_size)) != 1:
            raise UserError(f"to_nir: NIR computes shapes of square kernels only, not of {conv.kernel_size}")
        wire = self.settle(wire)
        padding = _padding(conv)
        stride, dilation = _pair(conv.stride), _pair(conv.dilation)
        size = [
            (side + 2 * p - d * (conv.kernel_size[0] - 1) - 1) // s + 1
            for side, p, d, s in zip(wire.shape[1:], padding, dilation, stride, strict=True)
        ]
        weights = Weights(
            dense(conv.weight.detach().double(), conv.groups) * wire.scale,
            _bias(conv.bias, conv.out_channels),
            wire.sources,
            stride,
            padding,
            dilation,
        )
        return Wire((), (conv.out_channels, *size), weights)

    def linear(self, wire: Wire, linear: nn.Linear) -> Wire:
        """A linear layer on a vector."""
        if len(wire.shape) != 1:
            raise UserError(f"to_nir: NIR has no linear layer on an input of shape {wire.shape}; flatten it")
        if wire.shape[0] != linear.in_features:
            raise UserError(f"to_nir: the network cannot run: {linear} on an input of shape {wire.shape}")
        wire = self.settle(wire)
        weight = linear.weight.detach().double() * wire.scale
        weights = Weights(weight, _bias(linear.bias, linear.out_features), wire.sources)
        return Wire((), (linear.out_features,), weights)

    def channelwise(self, wire: Wire, scale: Tensor, shift: Tensor) -> Wire:
        """``scale x + shift`` for each channel: folded into the layer before, or a layer of its own."""
        if wire.pending is not None:
            weight, bias = fold(wire.pending.weight, wire.pending.bias, scale, shift)
            return replace(wire, pending=replace(wire.pending, weight=weight, bias=bias))
        weights = Weights(channelwise(scale * wire.scale, len(wire.shape) - 1), shift, wire.sources)
        return Wire((), wire.shape, weights)

    def settle(self, wire: Wire) -> Wire:
        """Write the pending layer: nothing folds into it any more."""
        if (p := wire.pending) is None:
            return wire
        weight, bias = p.weight.numpy(), p.bias.numpy()
        node: NIRNode
        if p.weight.dim() == 4:
            node = nir().Conv2d(
                input_shape=None,
                weight=weight,
                bias=bias,
                stride=p.stride,
                padding=p.padding,
                dilation=p.dilation,
                groups=1,
            )
            return Wire((self.add("conv", node, p.inputs),), wire.shape)
        if p.bias.any() or self.convention.chain:
            node = nir().Affine(weight=weight, bias=bias)
        else:
            node = nir().Linear(weight=weight)
        return Wire((self.add("linear", node, p.inputs),), wire.shape)

    def unscaled(self, wire: Wire) -> Wire:
        """The same with its scale applied, for layers that cannot fold it into weights."""
        wire = self.settle(wire)
        if wire.scale == 1:
            return wire
        ones = torch.ones(wire.shape[0], dtype=torch.float64)
        return self.settle(self.channelwise(wire, ones, 0 * ones))

    def neurons(self, wire: Wire, constants: Neurons) -> Wire:
        """A layer of neurons."""
        wire, how, dt = self.unscaled(wire), self.convention, self.dt
        ones = np.ones(wire.shape)
        leaky = how.leaky == "always" or (how.leaky == "vectors" and len(wire.shape) == 1)
        unleaky = constants.decay == 1 and not leaky
        scale = 1.0 if unleaky else how.scale(constants.decay)
        settings = {
            "v_threshold": ones * how.written_threshold(scale * constants.threshold),
            "v_reset": 0 * ones,
        }
        if unleaky:
            r = ones if how.as_is or how.as_lost else ones / dt
            return Wire((self.add("if", nir().IF(r=r, **settings), wire.sources),), wire.shape)
        if how.leaky == "vectors" and len(wire.shape) > 1:
            raise UserError(f"to_nir: {how.name} cannot read leaky neurons on maps, only on vectors")
        if constants.decay == 0 and how.keeps:
            raise UserError(f"to_nir: {how.name} cannot read neurons of decay 0")
        tau = how.tau(constants.decay, dt)
        node = nir().LIF(tau=tau * ones, r=how.resistance(tau, dt) * ones, v_leak=0 * ones, **settings)
        return Wire((self.add("lif", node, wire.sources),), wire.shape)

    def average(self, wire: Wire, kernel: tuple[int, int], stride: tuple[int, int]) -> Wire:
        """Average pooling; where the tool knows only sums, the next weights divide."""
        wire = self.settle(wire)
        kind = nir().SumPool2d if self.convention.chain else nir().AvgPool2d
        sizes = {"kernel_size": np.array(kernel), "stride": np.array(stride), "padding": np.array([0, 0])}
        size = [(n - k) // s + 1 for n, k, s in zip(wire.shape[1:], kernel, stride, strict=True)]
        scale = wire.scale / math.prod(kernel) if self.convention.chain else wire.scale
        return Wire((self.add("pool", kind(**sizes), wire.sources),), (wire.shape[0], *size), scale=scale)

    def flatten(self, wire: Wire) -> Wire:
        """A vector. Dimensions count from the end, which all tools read the same way."""
        if len(wire.shape) == 1:
            return wire
        wire = self.settle(wire)
        node = nir().Flatten(input_type=None, start_dim=-len(wire.shape), end_dim=-1)
        return replace(
            wire, sources=(self.add("flatten", node, wire.sources),), shape=(math.prod(wire.shape),)
        )

    def total(self, wires: list[Wire]) -> Wire:
        """The sum of several wires of one shape."""
        settled = [self.unscaled(wire) for wire in wires]
        return Wire(tuple(source for wire in settled for source in wire.sources), settled[0].shape)

    def finish(self, wire: Wire, metadata: Mapping[str, str | float]) -> NIRGraph:
        """The graph with that output."""
        wire = self.unscaled(wire)
        if self.convention.chain and len({before for before, _ in self.edges}) < len(self.edges):
            raise UserError(
                f"to_nir: {self.convention.name} reads chains of layers only; the network branches"
            )
        self.add("output", nir().Output(output_type=np.array(wire.shape)), wire.sources)
        return nir().NIRGraph(nodes=self.nodes, edges=self.edges, metadata=dict(metadata))


def rounded(graph: NIRGraph, convention: Convention, dt: float) -> NIRGraph:
    """The graph with weights and thresholds in float32, in place; time constants stay in float64."""
    for node in graph.nodes.values():
        for name in ("weight", "bias", "v_threshold", "v_reset", "v_leak"):
            if isinstance(value := getattr(node, name, None), np.ndarray):
                setattr(node, name, value.astype(np.float32))
        if isinstance(node, nir().LIF):
            tau = convention.written_tau(float(node.tau.flat[0]), dt)
            node.tau = np.full_like(node.tau, tau)
    return graph


def _bias(bias: Tensor | None, outputs: int) -> Tensor:
    return torch.zeros(outputs, dtype=torch.float64) if bias is None else bias.detach().double()


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return value[0], value[1]


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    """Padding in pixels; UserError where it differs from side to side."""
    if not isinstance(conv.padding, str):
        return _pair(conv.padding)
    if conv.padding == "valid":
        return 0, 0
    doubled = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if any(n % 2 for n in doubled):
        raise UserError(f"to_nir: NIR has no padding that differs from side to side ({conv})")
    return doubled[0] // 2, doubled[1] // 2
