"""From a NIR graph to a network of spikeguard's layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spikeguard.arguments import checked, error_line, shown
from spikeguard.errors import UserError
from spikeguard.interchange.conventions import Convention, convention
from spikeguard.interchange.network import ImportedNetwork
from spikeguard.interchange.nir_nodes import REFUSED, Reset, Step, layer
from spikeguard.interchange.optional import nir
from spikeguard.interchange.state_files import LARGEST
from spikeguard.interchange.wiring import wiring

if TYPE_CHECKING:
    from nir import NIRGraph

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
        layers = {k: layer(k, loaded.nodes[k], Step(reset, how, step, dtype)) for k in wires.inputs}
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
