"""Pictures of an audit's page, as SVG text. They read the record only; '' where it has nothing to show."""

from __future__ import annotations

from itertools import pairwise

from spikeguard.records.schema import AuditRecord
from spikeguard.runtime.picture import INK, figure, svg

ACCENT, SOFT, WARN = "#1f6f8b", "#9cc4d1", "#b4532a"


def falling(record: AuditRecord) -> str:
    """Accuracy left after each attack, in the order in which they ran."""
    rows = [(m.title, m.after) for m in record.members if m.after is not None and m.attempted]
    names = ["clean", *(name for name, _ in rows)]
    left = [100 * record.clean.value, *(100 * after for _, after in rows)]
    picture, axes = figure(8.6, 0.9 + 0.21 * len(names))
    axis = axes[0][0]
    shades = [SOFT, *(ACCENT if b < a - 1e-9 else SOFT for a, b in pairwise(left))]
    axis.barh(range(len(names)), left, color=shades, height=0.72, lw=0)
    for row, (value, before) in enumerate(zip(left, [left[0], *left], strict=False)):
        fell = before - value
        text = f"{value:.1f}" + (f"  (-{fell:.1f})" if fell > 1e-9 else "")
        axis.text(value + 0.7, row, text, va="center", fontsize=7.5, color=INK)
    axis.set_yticks(range(len(names)), names, fontsize=7.5)
    axis.invert_yaxis()
    axis.set_xlim(0, 112)
    axis.set_xlabel("accuracy left, %")
    return svg(picture)


def families(record: AuditRecord) -> str:
    """How far the number would rise without each family."""
    if not record.without_family:
        return ""
    worst = record.worst_case.value
    rises = {k: max(100 * (v - worst), 0) for k, v in record.without_family.items()}
    largest = max(*rises.values(), 1.0)
    picture, axes = figure(5.2, 1.1 + 0.26 * len(rises))
    axis = axes[0][0]
    axis.barh(range(len(rises)), list(rises.values()), color=ACCENT, height=0.7, lw=0)
    for row, value in enumerate(rises.values()):
        axis.text(value + 0.05 * largest, row, f"+{value:.1f}", va="center", fontsize=8)
    axis.set_yticks(range(len(rises)), list(rises), fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.3 * largest)
    axis.set_xlabel("points higher without this family")
    return svg(picture)


def against_eps(record: AuditRecord) -> str:
    """Accuracy against eps; in multiples of the budget where each image has its own."""
    if record.controls is None or record.controls.curve is None:
        return ""
    factors, shares = zip(*record.controls.curve.points, strict=True)
    eps, scale, unit = record.threat.eps, 1.0, "budget, times eps"
    if record.threat.norm == "linf" and not isinstance(eps, tuple):
        scale, unit = 255 * eps, "eps, in 255ths"
    picture, axes = figure(4.6, 2.7)
    axis = axes[0][0]
    axis.plot([f * scale for f in factors], [100 * s for s in shares], "o-", color=ACCENT, lw=1.8, ms=4)
    axis.axvline(scale, color=WARN, lw=0.9, ls="--")
    axis.set_xlabel(unit)
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(0, 100)
    axis.set_xlim(0, None)
    axis.grid(axis="y", color="#e3e6ea")
    return svg(picture)


def against_steps(record: AuditRecord) -> str:
    """Samples that the attack with the last word broke by each query or step."""
    found = record.convergence
    if found is None:
        return ""
    steps, broken = zip(*found.broken_by_step, strict=True)
    member = record.member(found.member)
    picture, axes = figure(4.6, 2.7)
    axis = axes[0][0]
    axis.plot(steps, broken, "o-", color=ACCENT, lw=1.8, ms=4)
    unit = "queries" if member and "queries" in member.settings else "steps"
    axis.set_xlabel(f"{unit} of {member.title if member else found.member}")
    axis.set_ylabel(f"broken, of {found.attempted} attacked")
    axis.set_ylim(0, None)
    axis.grid(axis="y", color="#e3e6ea")
    return svg(picture)


def gap(record: AuditRecord) -> str:
    """From accuracy under PGD-20 with the own gradient down to the worst case, in three parts."""
    parts = record.masking
    if parts is None:
        return ""
    shares = (
        ("rest: without gradients", parts.rest, "#e8c9b8"),
        ("gradient: other backward passes", parts.gradient, "#d49a7a"),
        ("optimizer: more steps, own gradient", parts.optimizer, "#b4532a"),
    )
    at = 100 * parts.worst_case
    picture, axes = figure(8.6, 1.7)
    axis = axes[0][0]
    axis.barh([0], [at], color=ACCENT, lw=0, label=f"worst case {at:.1f} %")
    for name, share, shade in shares:
        axis.barh([0], [100 * share], left=at, color=shade, lw=0, label=f"{name} {100 * share:.1f}")
        at += 100 * share
    axis.set_yticks([])
    axis.set_xlim(0, 100)
    axis.set_xlabel("accuracy, %")
    picture.legend(frameon=False, fontsize=8, ncols=2, loc="outside upper center")
    return svg(picture)
