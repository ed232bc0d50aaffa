"""Pictures of a page, as SVG text. They read records only."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

COLORS = {"vanilla": "#b4532a", "control": "#8a8a8a", "tgo": "#1f6f8b"}
INK = "#22262b"


def figure(width: float, height: float, rows: int = 1, columns: int = 1) -> Any:
    """A figure in our style and its axes ``[rows][columns]``."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style: Any = {
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": "#9aa1a9",
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(style | {"axes.spines.top": False, "axes.spines.right": False}):
        return pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")


def svg(drawn: Any) -> str:
    """The figure as SVG text, the same every time; it is closed."""
    from matplotlib import pyplot, rc_context

    out = io.StringIO()
    with rc_context({"svg.hashsalt": "spikeguard"}):  # ids from what they name, not by chance
        drawn.savefig(out, format="svg", metadata={"Date": None})
    pyplot.close(drawn)
    text = out.getvalue()
    return text[text.index("<svg") :]


def bars(networks: Sequence[Mapping[str, Any]], eps: str) -> str:
    """Clean accuracy, what the training surrogate says, and the worst case, a group a network.

    With 95 % intervals.
    """
    drawn, axes = figure(6.8, 3.0)
    axis, shades = axes[0][0], (0.35, 0.65, 1.0)
    for number, network in enumerate(networks):
        attacks = network["attacks"][eps]
        for place, (told, shade) in enumerate(
            zip((attacks["clean"], attacks["alone"]["PGD-20"], attacks["worst_case"]), shades, strict=True)
        ):
            share, (low, high) = 100 * told["accuracy"], (100 * v for v in told["interval"])
            at = number + 0.27 * (place - 1)
            axis.bar(at, share, 0.24, color=COLORS[network["role"]], alpha=shade, lw=0)
            axis.errorbar(
                at, share, [[max(share - low, 0)], [max(high - share, 0)]], color=INK, lw=1, capsize=2
            )
            axis.text(
                at,
                high + 2,
                f"{share:.0f}",
                ha="center",
                fontsize=9,
                fontweight="bold" if place == 2 else "normal",
            )
    axis.set_xticks(range(len(networks)), [n["label"] for n in networks])
    names = ("clean", "PGD-20, training surrogate", "worst case")
    keys = [axis.bar(0, 0, color=INK, alpha=shade, lw=0) for shade in shades]
    axis.legend(
        keys, names, frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.14)
    )
    axis.set_ylabel(f"accuracy at {eps}, %")
    axis.set_ylim(0, 108)
    return svg(drawn)


def histograms(networks: Sequence[Mapping[str, Any]], edges: Sequence[float], delta: float) -> str:
    """Potentials before reset around the threshold, a column a layer, one outline a network.

    The band ``|u| < delta`` is shaded.
    """
    layers = list(networks[0]["neighbors"]["histogram"])
    drawn, axes = figure(9.0, 2.9, 1, len(layers))
    middle = (np.array(edges[1:]) + np.array(edges[:-1])) / 2
    for number, (layer, axis) in enumerate(zip(layers, axes[0], strict=True)):
        axis.axvspan(-delta, delta, color="#f3e3b3", lw=0)
        axis.axvline(0, color=INK, lw=0.8)
        for network in networks:
            counts = np.array(network["neighbors"]["histogram"][layer], dtype=float)
            density = counts / counts.sum() / (middle[1] - middle[0])
            axis.plot(middle, density, color=COLORS[network["role"]], lw=1.5, label=network["label"])
        axis.set_title(f"layer {number + 1}", fontsize=9)
        axis.set_xlabel("u = potential - threshold")
        axis.set_xlim(-2, 2)
        axis.set_ylim(0, None)
    axes[0][0].set_ylabel("density")
    axes[0][-1].legend(frameon=False, fontsize=8)
    return svg(drawn)


def curves(networks: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy against eps."""
    drawn, axes = figure(6.4, 3.2)
    axis = axes[0][0]
    for network in networks:
        eps, share = zip(*network["curve"], strict=True)
        axis.plot(
            [e * 255 for e in eps],
            [100 * s for s in share],
            "o-",
            color=COLORS[network["role"]],
            lw=1.8,
            ms=4,
            label=network["label"],
        )
    axis.set_xlabel("eps, in 255ths of the pixel range")
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(0, 100)
    axis.set_xlim(0, None)
    axis.grid(axis="y", color="#e3e6ea")
    axis.legend(frameon=False)
    return svg(drawn)


def twins(clean: Any, found: Any, names: Sequence[tuple[str, str]], amplified: float) -> str:
    """Rows of images ``[N, C, H, W]`` in [0, 1].

    Clean, attacked, and the difference times ``amplified`` around gray.
    """
    clean, found = np.asarray(clean), np.asarray(found)
    rows = (clean, found, np.clip(0.5 + amplified * (found - clean), 0, 1))
    titles = ("clean", "attacked", f"difference x {amplified:g}")
    drawn, axes = figure(9.0, 3.6, 3, len(names))
    for r, (row, title) in enumerate(zip(rows, titles, strict=True)):
        for c, image in enumerate(row):
            axis = axes[r][c]
            picture = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if r < 2:
                axis.set_title(names[c][r], fontsize=8)
            if c == 0:
                axis.set_ylabel(title, fontsize=8)
    return svg(drawn)
