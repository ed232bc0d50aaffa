"""The picture of a network's potentials: a histogram of u = H - threshold for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spikeguard.errors import UserError
from spikeguard.records.files import write_bytes
from spikeguard.runtime.picture import INK, figure, png, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = (".svg", ".png")
BELOW, ABOVE, NEAR = "#8a8a8a", "#1f6f8b", "#f3e3b3"
BINS, COLUMNS, SPREADS = 80, 4, 4.0
"""Bars of a histogram, panels in a row, and standard deviations around the mean that a panel shows."""


def draw(potentials: Mapping[str, Tensor], path: Path, delta: float | None) -> None:
    """Write a picture of potentials by name of the layer, where ``name#1`` is the layer called ``name``."""
    layers: dict[str, list[Tensor]] = {}
    for name, u in potentials.items():
        layers.setdefault(name.partition("#")[0], []).append(u.detach().flatten().float().cpu())
    columns = min(COLUMNS, len(layers))
    rows = -(-len(layers) // columns)
    picture, axes = figure(0.6 + 2.6 * columns, 0.2 + 2.2 * rows, rows, columns)
    panels = [axis for row in axes for axis in row]
    for axis, (name, held) in zip(panels, layers.items(), strict=False):
        _panel(axis, name, torch.cat(held), delta)
    for axis in panels[len(layers) :]:
        axis.remove()
    for axis in panels[len(layers) - columns : len(layers)]:
        axis.set_xlabel("u = potential - threshold")
    for row in axes:
        row[0].set_ylabel("density")
    write_bytes(path, png(picture) if path.suffix == ".png" else svg(picture).encode())


def _panel(axis: Axes, name: str, u: Tensor, delta: float | None) -> None:
    """One layer: potentials below the threshold, and those that reach it."""
    if not bool(u.isfinite().all()):
        raise UserError(f"draw: {name or 'the model'} has potentials that are no finite numbers")
    low, high = limits(u)
    density = (torch.histc(u, BINS, low, high) * BINS / (len(u) * (high - low))).tolist()
    below = round(-low * BINS / (high - low))
    edges = [low + bar * (high - low) / BINS for bar in range(BINS + 1)]
    axis.stairs(density[:below], edges[: below + 1], fill=True, color=BELOW, lw=0)
    axis.stairs(density[below:], edges[below:], fill=True, color=ABOVE, lw=0)
    fires = 100 * float((u >= 0).float().mean())
    title = f"{name or 'the model'}\n{fires:.1f} % at or above the threshold"
    if delta is not None:
        axis.axvspan(-delta, delta, color=NEAR, lw=0, zorder=0)
        title += f"\n{100 * float((u.abs() < delta).float().mean()):.1f} % nearer than {delta:g}"
    axis.axvline(0, color=INK, lw=0.8)
    axis.set_title(title, fontsize=8)
    axis.set_xlim(low, high)
    axis.set_ylim(0, None)
    axis.locator_params("x", nbins=5)
    axis.set_yticks([])


def limits(u: Tensor) -> tuple[float, float]:
    """From where to where a panel shows, with the threshold at the edge of a bar."""
    mean, spread = float(u.mean()), SPREADS * float(u.std(correction=0))
    low = min(max(float(u.min()), mean - spread), 0.0)
    high = max(min(float(u.max()), mean + spread), 0.0)
    width = max(high - low, 1e-3) / (BINS - 2)
    below = min(max(round(-low / width), 1), BINS - 1)
    return -below * width, (BINS - below) * width
