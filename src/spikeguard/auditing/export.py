"""Audits as a table or as a paragraph on the method, from their records alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from spikeguard.auditing.merge import audits
from spikeguard.auditing.suite import PGD_20
from spikeguard.errors import UserError
from spikeguard.records.base import Record
from spikeguard.records.schema import AuditRecord, Budget, Settings
from spikeguard.runtime.shown import cell
from spikeguard.runtime.tabular import csv_text, latex_text, markdown_text
from spikeguard.stats import COVERS

SHAPE: dict[str, Callable[[Settings], object]] = {
    "network": lambda recipe: (recipe["network"], recipe["options"]),
    "number of time steps": lambda recipe: recipe["timesteps"],
    "decay of the neurons": lambda recipe: _decay(recipe["neuron"]),
}
"""What networks of one table have in common: two that differ here differ in more than their defenses."""
HEADER = ["network", "clean", "PGD-20, own gradient", "worst case", "95 % interval", "reliable"]
NORMS = {"linf": "L-infinity", "l2": "L2", "l1": "L1"}


def _decay(neuron: object) -> object:
    return neuron.get("decay") if isinstance(neuron, Mapping) else None


def rows(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table.

    Raises:
        UserError: the records differ in images, threat or suite, or their recipes in the network's shape.
    """
    found = audits(records)
    recipes = [r.origin.recipe for r in found if r.origin.recipe is not None]
    columns: list[tuple[str, list[object]]] = [
        ("threat", [r.threat for r in found]),
        ("suite", [r.suite.hash for r in found]),
        ("images", [r.digests and r.digests.images for r in found]),
        *((what, [get(recipe) for recipe in recipes]) for what, get in SHAPE.items()),
    ]
    for name, values in columns:
        if any(v != values[0] for v in values):
            raise UserError(f"records differ in {name}: a table holds rows of one {name} only")
    return HEADER, [_row(number, record) for number, record in enumerate(found, 1)]


def _row(number: int, record: AuditRecord) -> list[str]:
    own, worst = record.alone.get(PGD_20.id), record.worst_case
    return [
        cell(record.origin.target or f"network {number}"),
        f"{100 * record.clean.value:.1f}",
        "not run" if own is None else f"{100 * own.value:.1f}",
        f"{100 * worst.value:.1f}",
        f"{100 * worst.low:.1f} to {100 * worst.high:.1f}",
        "no" if record.errors else "yes",
    ]


def as_csv(records: Sequence[Record]) -> str:
    """The table as CSV."""
    return csv_text(*rows(records))


def as_latex(records: Sequence[Record]) -> str:
    """The table as a LaTeX tabular (booktabs)."""
    return latex_text(*rows(records))


def as_markdown(records: Sequence[Record]) -> str:
    """The table as Markdown."""
    return markdown_text(*rows(records))


def budget_text(budget: Budget) -> str:
    """A budget as people write it: '8/255' under Linf."""
    if isinstance(budget.eps, tuple):
        return "one for each image"
    return f"{255 * budget.eps:.3g}/255" if budget.norm == "linf" else f"{budget.eps:g}"


def methods(record: Record) -> str:
    """A paragraph for the section on evaluation of a paper."""
    (found,) = audits([record])
    ran = [m for m in found.members if m.attempted]
    families = list(dict.fromkeys(m.family for m in ran))
    random = (
        "The model is random at inference: gradients were averaged over draws of its noise, inputs were "
        "chosen on one set of draws and scored on 100 others, and accuracies are mean shares of right draws."
    )
    deterministic = (
        "A sample counts as broken only with a stored input that lies inside the budget and was checked "
        "again in float32 on the untouched model, at another batch size."
    )
    suite, worst = found.suite, found.worst_case
    seeds = ", ".join(dict.fromkeys(str(p.seed) for p in found.merged_from)) or str(found.seed)
    sentences = [
        f"Robustness was measured with spikeguard {found.machine.versions['spikeguard']} ({suite.version}, "
        f"effort {suite.effort}, suite hash {suite.hash}, seed {seeds}) on {found.images} images under an "
        f"{NORMS[found.threat.norm]} budget of {budget_text(found.threat)}, pixels in [0, 1].",
        f"{len(ran)} attacks of {len(families)} families ({', '.join(families)}) were run one after the "
        "other on the samples that were not broken yet; the number reported is their union, an upper bound "
        "of robust accuracy.",
        random if found.random_model else deterministic,
        f"The audit flagged its own result as not reliable ({', '.join(found.errors)})."
        if found.errors
        else "No check of the audit's own reliability failed.",
        f"Clean accuracy is {100 * found.clean.value:.1f} %, robust accuracy at most "
        f"{100 * worst.value:.1f} % (95 % interval {100 * worst.low:.1f} to {100 * worst.high:.1f} %, which "
        f"covers {COVERS}).",
    ]
    if found.cost.forwards:
        sentences.append(
            f"The attacks took {found.cost.forwards:,.0f} forward and {found.cost.backwards:,.0f} backward "
            "passes of single images."
        )
    return " ".join(sentences)
