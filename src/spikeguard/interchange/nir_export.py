"""From a network of spikeguard's layers to a NIR graph."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spikeguard.adapters.tap import tap
from spikeguard.arguments import checked, error_line
from spikeguard.errors import UserError
from spikeguard.interchange.builder import GraphBuilder, rounded
from spikeguard.interchange.conventions import convention as named
from spikeguard.interchange.emit import emit
from spikeguard.interchange.network import ImportedNetwork
from spikeguard.interchange.nir_import import read
from spikeguard.interchange.nir_nodes import Reset
from spikeguard.interchange.optional import nir
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import spiking
from spikeguard.records.files import write_bytes

if TYPE_CHECKING:
    from nir import NIRGraph

SECONDS = 1e-4
"""A time step, unless the caller or the convention says otherwise: what snntorch takes for granted."""
STEPS, SAMPLES, TOLERANCE = 4, 2, 1e-6


@checked
def to_nir(
    net: nn.Module,
    path: str | Path | None = None,
    *,
    in_shape: Sequence[int] | None = None,
    convention: str = "euler",
    dt: float | None = None,
    batch: Tensor | None = None,
) -> object:
    """Turn a network into a NIR graph, with batch norms folded, and write it to ``path`` if one is given.

    ``net``: of ``sg.build`` or ``sg.load``, or an ``nn.Sequential`` of convolutions, linear layers, average
    pooling, batch norms and ``sg.LIF``, ``sg.IF``, ``sg.PLIF`` on ``[T, N, *in_shape]``, with layers on maps
    inside a ``sg.interchange.Folded``; only that needs ``in_shape``. ``convention``: how the reader takes the
    constants ('euler', 'snntorch', 'spikingjelly', 'sinabs': see the guide); ``dt``: seconds of a time step.
    The graph's output at each step is the network's; scores are its mean over time. Surrogates, and
    noise in training, are not part of a graph. The graph is read back: potentials and outputs have to equal
    the network's on ``batch`` (random inputs without one). Raises UserError on what NIR cannot represent, by
    name.

    >>> graph = sg.interchange.to_nir(net, "net.nir", convention="snntorch")
    >>> [type(node).__name__ for node in graph.nodes.values()][:4]
    ['Input', 'Conv2d', 'LIF', 'AvgPool2d']
    """
    how = named(convention)
    step = how.step(dt) or SECONDS
    shape = _shape(net, in_shape)
    resets = {layer.spec.reset for layer in spiking(net).values()}
    if len(resets) != 1:
        raise UserError(
            "to_nir: the network has no spiking layer of spikeguard"
            if not resets
            else "to_nir: some layers reset to 0 and others by the threshold; NIR cannot say which"
        )
    reset = resets.pop()
    if reset == "soft" and how.only_hard:
        raise UserError(f"to_nir: {how.name} resets every layer to 0, but the network's resets are soft")
    if any(layer.requests for layer in spiking(net).values()):
        raise UserError("to_nir: a tap is open on the network; close it first")
    exact = copy.deepcopy(net).eval().cpu().float().double()  # numbers of float32, as networks compute
    builder = GraphBuilder(how, step)
    output = emit(builder, exact, builder.input(shape))
    if len(output.shape) != 1:
        raise UserError(f"to_nir: the output has shape {output.shape}, must be a vector; flatten it")
    graph = builder.finish(output, {"reset": reset, "convention": how.name, "dt": step})
    _check(exact, graph, reset, shape, batch)
    rounded(graph, how, step)
    if path is not None:
        _write(graph, Path(path))
    return graph


def _shape(net: nn.Module, given: Sequence[int] | None) -> tuple[int, ...]:
    own = net.in_shape if isinstance(net, (Classifier, ImportedNetwork)) else None
    if own is None and given is None:
        raise UserError("to_nir: in_shape is needed: the shape of an input, as (3, 32, 32) or (784,)")
    if own is not None and given is not None and tuple(given) != own:
        raise UserError(f"to_nir: in_shape = {tuple(given)}, but the network's is {own}")
    shape = tuple(own or given or ())
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise UserError(f"to_nir: in_shape = {shape} must be (features,) or (channels, height, width)")
    return shape


def _check(
    own: nn.Module, graph: NIRGraph, reset: Reset, shape: tuple[int, ...], batch: Tensor | None
) -> None:
    """UserError unless the graph, read back, has the network's potentials and outputs, in float64."""
    steps = own.timesteps if isinstance(own, (Classifier, ImportedNetwork)) else STEPS
    again = read(graph, reset, None, None, steps, dtype=torch.float64)
    if batch is None:
        batch = torch.rand(SAMPLES, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = batch.detach().to("cpu", torch.float64)
    if x.dim() != len(shape) + 1:
        raise UserError(f"to_nir: batch of shape {tuple(x.shape)} must be [N, {', '.join(map(str, shape))}]")
    try:
        with torch.no_grad(), tap(own) as seen:
            wanted = own(x, per_step=True) if hasattr(own, "timesteps") else own(x.expand(steps, *x.shape))
    except (RuntimeError, TypeError, IndexError) as error:
        raise UserError(
            f"to_nir: the network cannot run on {tuple(x.shape)} ({error_line(error)})"
        ) from error
    with torch.no_grad(), tap(again) as read_back:
        outputs = again(x, per_step=True)
    pairs = zip([*seen.potentials.values(), wanted], [*read_back.potentials.values(), outputs], strict=True)
    names = [f"the potentials of {name}" for name in seen.potentials] + ["the outputs"]
    for name, (mine, theirs) in zip(names, pairs, strict=True):
        if mine.shape != theirs.shape or not torch.allclose(mine, theirs, TOLERANCE, TOLERANCE):
            raise UserError(f"to_nir: {name} differ once the graph is read back; nothing was written")


def _write(graph: NIRGraph, path: Path) -> None:
    """A whole file or none."""
    held = io.BytesIO()
    nir().write(held, graph)
    write_bytes(path, held.getvalue())
