"""From a NIR graph to a network of spikeguard's layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from spikeguard.arguments import checked, error_line, shown
from spikeguard.errors import UserError
from spikeguard.interchange.conventions import Convention, convention
from spikeguard.interchange.network import ImportedNetwork, SumPool
from spikeguard.interchange.optional import nir
from spikeguard.interchange.state_files import LARGEST
from spikeguard.interchange.wiring import wiring
from spikeguard.neurons import Neuron, Spiking

if TYPE_CHECKING:
    from nir import NIRGraph, NIRNode

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
TOLERANCE = 1e-4
"""Share of the largest score by which two tools may differ."""


@checked
def from_nir(
    graph: object,
    *,
    reset: Reset,
    dt: float | None = None,
    timesteps: int = 4,
    convention: str | None = None,
    expect: tuple[Tensor, Tensor] | None = None,
) -> ImportedNetwork:
    """Turn a NIR graph, or the file of one, into a network of spikeguard's layers, in eval mode.

    ``reset`` must be named: in NIR a hard reset and a soft one are the same. ``dt``: seconds of a time step;
    ``convention``: whose reading of the constants holds ('euler', 'snntorch', 'spikingjelly', 'sinabs': see
    the guide); both default to what ``to_nir`` wrote into the graph. ``timesteps``: how long inputs are held.
    ``expect``: a batch ``[N, ...]`` or sequence ``[T, N, ...]`` and the scores that another tool gives for
    it, to compare with. Raises UserError on what spikeguard has no layer for, by name, and if the scores
    differ. Pedersen et al., "Neuromorphic intermediate representation", Nature Communications 2024.

    >>> graph = sg.interchange.to_nir(net)
    >>> again = sg.interchange.from_nir(graph, reset="hard", timesteps=3)
    >>> torch.allclose(again(x), net(x), atol=1e-5)
    True
    """
    return read(graph, reset, dt, convention, timesteps, expect)


def read(
    graph: object,
    reset: Reset,
    dt: float | None,
    name: str | None,
    timesteps: int,
    expect: tuple[Tensor, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> ImportedNetwork:
    """As ``from_nir``, with weights of another dtype."""
    if timesteps < 1:
        raise UserError(f"from_nir: timesteps = {timesteps} must be at least 1")
    loaded = _load(graph)
    notes = loaded.metadata
    _agree("reset", reset, notes.get("reset"))
    how = _convention(name, notes)
    step = how.step(float(notes["dt"]) if dt is None and "dt" in notes else dt)
    if step is None:
        raise UserError("from_nir: dt is needed: the seconds of a time step (snntorch writes dt=1e-4)")
    for key, node in loaded.nodes.items():
        if (kind := type(node).__name__) in REFUSED:
            raise UserError(f"from_nir: node {key!r} is a {kind}: {REFUSED[kind]}")
    wires = wiring({k: type(n).__name__ for k, n in loaded.nodes.items()}, loaded.edges)
    try:
        layers = {k: _layer(k, loaded.nodes[k], Step(reset, how, step, dtype)) for k in wires.inputs}
        shape = [int(n) for n in loaded.nodes[wires.source].input_type["input"]]
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"from_nir: the graph is damaged ({error_line(error)})") from error
    net = ImportedNetwork(layers, wires, shape, timesteps).to(dtype).checked("from_nir")
    if expect is not None:
        _compare(net, *expect)
    return net


def _load(graph: object) -> NIRGraph:
    """The graph itself, or that of a file."""
    if isinstance(graph, (str, Path)):
        if not Path(graph).is_file():
            raise UserError(f"from_nir: no file {str(graph)!r}")
        try:
            loaded = _read(Path(graph))
        except UserError:
            raise
        except Exception as error:  # nir raises what it meets; h5py, too
            raise UserError(f"from_nir: {graph} holds no NIR graph ({error_line(error)})") from error
    else:
        loaded = graph
    if not isinstance(loaded, nir().NIRGraph):
        raise UserError(f"from_nir: {shown(loaded)} must be a NIRGraph or the path of its file")
    return loaded


def _read(path: Path) -> object:
    """What a file holds; UserError if its arrays, which may be compressed, are too large for memory."""
    module = nir()
    from h5py import Dataset, File  # nir needs it, too

    sizes: list[int] = []

    def measure(name: str, item: object) -> None:
        sizes.append(item.nbytes if isinstance(item, Dataset) else 0)

    with File(path, "r") as file:
        file.visititems(measure)
    if sum(sizes) > LARGEST:
        raise UserError(
            f"from_nir: {path} holds {sum(sizes):,} bytes of numbers, at most {LARGEST:,} are read"
        )
    return module.read(path)


def _convention(name: str | None, notes: dict[str, object]) -> Convention:
    if name is not None and "convention" in notes:
        _agree("convention", name, notes["convention"])
    return convention(str(notes.get("convention", "euler")) if name is None else name)


def _agree(name: str, given: str, written: object) -> None:
    """UserError if the graph itself says otherwise."""
    if written is not None and str(written) != given:
        raise UserError(f"from_nir: {name} = {given!r}, but the graph was written with {str(written)!r}")


@dataclass(frozen=True)
class Step:
    """What a graph leaves open about a time step of ``dt`` seconds."""

    reset: Reset
    how: Convention
    dt: float
    dtype: torch.dtype


def _layer(key: str, node: NIRNode, step: Step) -> nn.Module:
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


def _compare(net: ImportedNetwork, x: Tensor, scores: Tensor) -> None:
    """UserError unless the network gives these scores ``[N, K]``, or outputs ``[T, N, K]``."""
    with torch.no_grad():
        own = net(x, per_step=scores.dim() == 3)
    if own.shape != scores.shape:
        raise UserError(f"from_nir: expect: scores of shape {tuple(scores.shape)} must be {tuple(own.shape)}")
    scores = scores.detach()
    limit = TOLERANCE * max(1.0, float(scores.abs().max()))
    wrong = ((own - scores).abs() > limit).flatten(-1).any(-1)
    wrong = wrong.any(0) if scores.dim() == 3 else wrong
    if wrong.any():
        raise UserError(
            f"from_nir: the network gives other scores on {int(wrong.sum())} of {len(wrong)} inputs (largest "
            f"difference {float((own - scores).abs().max()):.3g}): check reset, dt and convention"
        )
