"""From one node of a NIR graph to a layer of spikeguard's or torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from spikeguard.errors import UserError
from spikeguard.interchange.conventions import Convention
from spikeguard.interchange.network import SumPool
from spikeguard.neurons import Neuron, Spiking

if TYPE_CHECKING:
    from nir import NIRNode

Reset = Literal["hard", "soft"]
REFUSED = {
    "CubaLIF": "its current leaks, too",
    "CubaLI": "it does not fire, and its current leaks, too",
    "LI": "it does not fire",
    "I": "it does not fire",
    "NIRGraph": "a graph inside the graph, as recurrent layers are written",
    "Delay": "spikeguard has no delays",
    "Threshold": "spikeguard has no neurons without a potential",
    "Scale": "write it as a linear layer",
    "Conv1d": "spikeguard reads vectors and maps only",
}
"""NIR's nodes that spikeguard has no layer for, and why."""


@dataclass(frozen=True)
class Step:
    """What a graph leaves open about a time step of ``dt`` seconds."""

    reset: Reset
    how: Convention
    dt: float
    dtype: torch.dtype


def layer(key: str, node: NIRNode, step: Step) -> nn.Module:
    kind = type(node).__name__
    if kind in ("IF", "LIF"):
        return _neurons(key, node, step)
    if kind not in LAYERS:
        raise UserError(f"from_nir: node {key!r} is a {kind}, which spikeguard cannot read")
    return LAYERS[kind](key, node)


def _neurons(key: str, node: NIRNode, step: Step) -> Spiking:
    """Neurons whose threshold is divided by what their current is multiplied by."""
    how, dt = step.how, step.dt
    for name in ("v_leak", "v_reset"):
        if (value := _uniform(key, node, name, 0.0)) != 0:
            raise UserError(
                f"from_nir: node {key!r}: {name} = {value:g}, but spikeguard's potentials rest at 0"
            )
    r, threshold = _uniform(key, node, "r"), how.read_threshold(_uniform(key, node, "v_threshold"))
    if type(node).__name__ == "IF":
        decay, unleaky = 1.0, how.unleaky_gain(r, dt)
        if unleaky is None:
            raise UserError(
                f"from_nir: node {key!r}: r = {r:g} must be 1 or 1 / dt = {1 / dt:g}; is dt right?"
            )
        gain = unleaky
    else:
        tau = _uniform(key, node, "tau")
        if not tau > 0:
            raise UserError(f"from_nir: node {key!r}: tau = {tau:g} must be above 0")
        decay, gain = how.decay(tau, dt, step.dtype), how.gain(tau, r, dt)
    if not 0 <= decay <= 1:
        raise UserError(
            f"from_nir: node {key!r}: a step of dt = {dt:g} s keeps {decay:g} of the potential at tau = "
            f"{_uniform(key, node, 'tau'):g} s: is dt right?"
        )
    if not gain > 0 or not threshold > 0:
        raise UserError(f"from_nir: node {key!r}: r and v_threshold must be above 0")
    if abs(gain - 1) > 1e-6:  # else only rounding
        threshold /= gain
    return Spiking(Neuron(decay=decay, threshold=threshold, reset=step.reset))


def _uniform(key: str, node: NIRNode, name: str, default: float | None = None) -> float:
    """The one value of a constant; UserError if neurons of the layer differ in it."""
    value = getattr(node, name, default)
    values = np.unique(np.asarray(value, dtype=np.float64))
    if values.size != 1 or not np.isfinite(values[0]):
        raise UserError(f"from_nir: node {key!r}: neurons of a layer must share one finite {name}")
    return float(values[0])


def _conv(key: str, node: NIRNode) -> nn.Module:
    weight = _tensor(node.weight)
    padding = str(node.padding) if isinstance(node.padding, (str, bytes)) else _pair(node.padding)
    conv = nn.Conv2d(
        weight.shape[1] * int(node.groups),
        weight.shape[0],
        _pair(weight.shape[2:]),
        _pair(node.stride),
        padding,
        _pair(node.dilation),
        int(node.groups),
        dtype=torch.float64,
    )
    _fill(key, conv, weight, _tensor(node.bias))
    return conv


def _affine(key: str, node: NIRNode) -> nn.Module:
    weight = _tensor(node.weight)
    if weight.dim() != 2:
        raise UserError(
            f"from_nir: node {key!r}: a linear layer must have a matrix, not {tuple(weight.shape)}"
        )
    bias = _tensor(node.bias) if hasattr(node, "bias") else None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=torch.float64)
    _fill(key, linear, weight, bias)
    return linear


def _flatten(key: str, node: NIRNode) -> nn.Module:
    first, last = int(node.start_dim), int(node.end_dim)  # without the batch
    return nn.Flatten(first + (first >= 0), last + (last >= 0))


def _sum(key: str, node: NIRNode) -> nn.Module:
    _unpadded(key, node)
    return SumPool(_pair(node.kernel_size), _pair(node.stride))


def _average(key: str, node: NIRNode) -> nn.Module:
    _unpadded(key, node)
    return nn.AvgPool2d(_pair(node.kernel_size), _pair(node.stride))


LAYERS: dict[str, Callable[[str, NIRNode], nn.Module]] = {
    "Conv2d": _conv,
    "Linear": _affine,
    "Affine": _affine,
    "Flatten": _flatten,
    "SumPool2d": _sum,
    "AvgPool2d": _average,
}


def _unpadded(key: str, node: NIRNode) -> None:
    if np.any(np.asarray(node.padding)):
        raise UserError(f"from_nir: node {key!r}: pooling with padding means something else in every tool")


def _fill(key: str, layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    if not all(t.isfinite().all() for t in (weight, bias) if t is not None):
        raise UserError(f"from_nir: node {key!r}: weights are not finite")
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)


def _tensor(values: object) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float64)


def _pair(value: object) -> tuple[int, int]:
    sides = [int(n) for n in np.asarray(value).reshape(-1)]
    return (sides[0], sides[0]) if len(sides) == 1 else (sides[0], sides[1])
