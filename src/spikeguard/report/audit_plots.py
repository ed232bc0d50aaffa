"""Pictures of an audit's page, as SVG text. They read the record only."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from spikeguard.report.plots import INK, figure, svg

ACCENT, SOFT, WARN = "#1f6f8b", "#9cc4d1", "#b4532a"


def falling(record: Mapping[str, Any]) -> str:
    """Accuracy left after each attack, in the order in which they ran."""
    rows = [m for m in record["members"] if m.get("after") is not None and m["met"]]
    names = ["clean", *(m["name"] for m in rows)]
    left = [100 * record["clean"]["accuracy"], *(100 * m["after"] for m in rows)]
    drawn, axes = figure(8.6, 0.9 + 0.21 * len(names))
    axis = axes[0][0]
    places = range(len(names))
    axis.barh(
        places,
        left,
        color=[SOFT, *(ACCENT if b < a - 1e-9 else SOFT for a, b in pairwise(left))],
        height=0.72,
        lw=0,
    )
    for place, (value, before) in enumerate(zip(left, [left[0], *left], strict=False)):
        fell = before - value
        axis.text(
            value + 0.7,
            place,
            f"{value:.1f}" + (f"  (-{fell:.1f})" if fell > 1e-9 else ""),
            va="center",
            fontsize=7.5,
            color=INK,
        )
    axis.set_yticks(places, names, fontsize=7.5)
    axis.invert_yaxis()
    axis.set_xlim(0, 112)
    axis.set_xlabel("accuracy left, %")
    return svg(drawn)


def families(record: Mapping[str, Any]) -> str:
    """How far the number would rise without each family."""
    shares, worst = record["without_each_family"], record["worst_case"]["accuracy"]
    rises = {k: 100 * (v - worst) for k, v in shares.items()}
    drawn, axes = figure(5.2, 1.1 + 0.26 * len(rises))
    axis = axes[0][0]
    places = range(len(rises))
    axis.barh(places, [max(v, 0) for v in rises.values()], color=ACCENT, height=0.7, lw=0)
    for place, value in zip(places, rises.values(), strict=True):
        axis.text(
            max(value, 0) + 0.05 * max(*rises.values(), 1),
            place,
            f"+{max(value, 0):.1f}",
            va="center",
            fontsize=8,
        )
    axis.set_yticks(places, list(rises), fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.3 * max(*rises.values(), 1))
    axis.set_xlabel("points higher without this family")
    return svg(drawn)


def against_eps(record: Mapping[str, Any]) -> str:
    """Accuracy against eps, in multiples of the audit's budget."""
    told = record["controls"]["curve"]
    factors, shares = zip(*told["points"], strict=True)
    ((norm, eps),) = record["threat"].items()
    scale, unit = (
        (255 * eps, "eps, in 255ths")
        if norm == "linf" and not isinstance(eps, list)
        else (1.0, "budget, times eps")
    )
    drawn, axes = figure(4.6, 2.7)
    axis = axes[0][0]
    axis.plot([f * scale for f in factors], [100 * s for s in shares], "o-", color=ACCENT, lw=1.8, ms=4)
    axis.axvline(scale, color=WARN, lw=0.9, ls="--")
    axis.set_xlabel(unit)
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(0, 100)
    axis.set_xlim(0, None)
    axis.grid(axis="y", color="#e3e6ea")
    return svg(drawn)


def against_steps(record: Mapping[str, Any]) -> str:
    """Samples that the longest attack had broken by each step."""
    told = record["convergence"]
    steps, broken = zip(*told["broken by step"], strict=True)
    drawn, axes = figure(4.6, 2.7)
    axis = axes[0][0]
    axis.plot(steps, broken, "o-", color=ACCENT, lw=1.8, ms=4)
    axis.set_xlabel(f"steps of {told['member']}")
    axis.set_ylabel(f"broken, of {told['met']} met")
    axis.set_ylim(0, None)
    axis.grid(axis="y", color="#e3e6ea")
    return svg(drawn)


def gap(record: Mapping[str, Any]) -> str:
    """From what PGD-20 with the own gradient says down to the worst case, in three parts."""
    parts = record["masking"]
    names = (
        "optimizer: more steps, own gradient",
        "gradient: other backward passes",
        "rest: without gradients",
    )
    left, drawn_parts = 100 * parts["worst case"], [100 * parts[k] for k in ("optimizer", "gradient", "rest")]
    drawn, axes = figure(8.6, 1.7)
    axis = axes[0][0]
    axis.barh([0], [left], color=ACCENT, lw=0, label=f"worst case {left:.1f} %")
    at = left
    for name, part, shade in zip(
        names[::-1], drawn_parts[::-1], ("#e8c9b8", "#d49a7a", "#b4532a"), strict=True
    ):
        axis.barh([0], [part], left=at, color=shade, lw=0, label=f"{name} {part:.1f}")
        at += part
    axis.set_yticks([])
    axis.set_xlim(0, 100)
    axis.set_xlabel("accuracy, %")
    drawn.legend(frameon=False, fontsize=8, ncols=2, loc="outside upper center")
    return svg(drawn)
