"""Pictures of a page, as SVG text. They read records only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spikeguard.records.studies import DemoNetwork
from spikeguard.runtime.picture import INK, figure, svg

COLORS = {"vanilla": "#b4532a", "control": "#8a8a8a", "nlif": "#7d6aa8", "tgo": "#1f6f8b"}
Images = NDArray[np.floating]


def bars(networks: Sequence[DemoNetwork], eps: str) -> str:
    """Clean accuracy, accuracy under PGD-20 with the own gradient, and the worst case of each network, with
    95 % intervals."""
    picture, axes = figure(6.8, 3.0)
    axis, shades = axes[0][0], (0.35, 0.65, 1.0)
    for number, network in enumerate(networks):
        found = network.attacks[eps]
        accuracies = (found.clean, found.alone["pgd20"], found.worst_case)
        for column, (accuracy, shade) in enumerate(zip(accuracies, shades, strict=True)):
            share, low, high = 100 * accuracy.value, 100 * accuracy.low, 100 * accuracy.high
            at = number + 0.27 * (column - 1)
            axis.bar(at, share, 0.24, color=COLORS[network.role], alpha=shade, lw=0)
            axis.errorbar(
                at, share, [[max(share - low, 0)], [max(high - share, 0)]], color=INK, lw=1, capsize=2
            )
            axis.text(
                at,
                high + 2,
                f"{share:.0f}",
                ha="center",
                fontsize=9,
                fontweight="bold" if column == 2 else "normal",
            )
    axis.set_xticks(range(len(networks)), [n.label for n in networks])
    names = ("clean", "PGD-20, training surrogate", "worst case")
    keys = [axis.bar(0, 0, color=INK, alpha=shade, lw=0) for shade in shades]
    axis.legend(
        keys, names, frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.14)
    )
    axis.set_ylabel(f"accuracy at {eps}, %")
    axis.set_ylim(0, 108)
    return svg(picture)


def histograms(networks: Sequence[DemoNetwork], edges: Sequence[float], delta: float) -> str:
    """Potentials before reset by layer and network; the band ``|u| < delta`` is shaded."""
    layers = list(networks[0].neighbors.histogram)
    picture, axes = figure(9.0, 2.9, 1, len(layers))
    middle = (np.array(edges[1:]) + np.array(edges[:-1])) / 2
    for number, (layer, axis) in enumerate(zip(layers, axes[0], strict=True)):
        axis.axvspan(-delta, delta, color="#f3e3b3", lw=0)
        axis.axvline(0, color=INK, lw=0.8)
        for network in networks:
            counts = np.array(network.neighbors.histogram[layer], dtype=float)
            density = counts / counts.sum() / (middle[1] - middle[0])
            axis.plot(middle, density, color=COLORS[network.role], lw=1.5, label=network.label)
        axis.set_title(f"layer {number + 1}", fontsize=9)
        axis.set_xlabel("u = potential - threshold")
        axis.set_xlim(-2, 2)
        axis.set_ylim(0, None)
    axes[0][0].set_ylabel("density")
    axes[0][-1].legend(frameon=False, fontsize=8)
    return svg(picture)


def curves(networks: Sequence[DemoNetwork]) -> str:
    """Accuracy against eps."""
    picture, axes = figure(6.4, 3.2)
    axis = axes[0][0]
    for network in networks:
        eps, share = zip(*network.curve, strict=True)
        axis.plot(
            [e * 255 for e in eps],
            [100 * s for s in share],
            "o-",
            color=COLORS[network.role],
            lw=1.8,
            ms=4,
            label=network.label,
        )
    axis.set_xlabel("eps, in 255ths of the pixel range")
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(0, 100)
    axis.set_xlim(0, None)
    axis.grid(axis="y", color="#e3e6ea")
    axis.legend(frameon=False)
    return svg(picture)


def image_rows(clean: Images, found: Images, names: Sequence[tuple[str, str]], amplified: float) -> str:
    """Three rows of images ``[N, C, H, W]`` in [0, 1]: clean, attacked, and their difference.

    The difference is multiplied by ``amplified`` and shown around gray.
    """
    rows = (clean, found, np.clip(0.5 + amplified * (found - clean), 0, 1))
    titles = ("clean", "attacked", f"difference x {amplified:g}")
    picture, axes = figure(9.0, 3.6, 3, len(names))
    for r, (row, title) in enumerate(zip(rows, titles, strict=True)):
        for c, image in enumerate(row):
            axis = axes[r][c]
            pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if r < 2:
                axis.set_title(names[c][r], fontsize=8)
            if c == 0:
                axis.set_ylabel(title, fontsize=8)
    return svg(picture)
