"""The study's table of networks that were scored once on test images."""

from __future__ import annotations

from collections.abc import Mapping

from spikeguard.records.studies import StudyRecord, StudyRow
from spikeguard.report.markdown import paragraph, table
from spikeguard.stats import COVERS
from studies.embedded.frontier import audit_of, key_of, margin_over_frontier
from studies.embedded.matrix import on_frontier, title_of
from studies.embedded.notes import NOT_RUN, remarks, retrained

HEADER = (
    "network",
    "clean",
    "own surrogate",
    "worst case (95 % interval)",
    "optimizer part",
    "gradient part",
    "rest",
    "margin",
)


def scores(record: StudyRecord) -> list[str]:
    """The section about test images."""
    lines = ["## Scored once on test images", ""]
    if not record.test:
        return [*lines, f"{NOT_RUN}: this comes last, when every network is ranked.", ""]
    behind = remarks(record, record.test, "standard")
    names = [name for name in dict.fromkeys((*record.finalists, *record.test)) if name in record.cells]
    rows = [_line(record.cells[name], record.test, name, behind.get(name, "")) for name in names]
    note = (
        f"The best five by validation (ranked on {seeds_that_chose(record)}), the frontier, no defense, and "
        "whatever was scored when the study had fewer rows or seeds. First seed, standard audit with the "
        f"members of quick and all adaptive ones, {record.settings.scored_on} test images. Optimizer and "
        "gradient part: what stronger optimizers and other gradients take from own surrogate. An interval "
        f"covers {COVERS}."
    )
    if retrained(record, record.test):
        note += (
            " Trained again: the ranked network was lost, and the same recipe on another machine gives "
            "another network."
        )
    return [*lines, *table(HEADER, rows), "", *paragraph(note), ""]


def seeds_that_chose(record: StudyRecord) -> str:
    """The seeds whose ranking chose the finalists; old records ranked one seed and do not name it."""
    seeds = record.chosen_on or (0,)
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def _line(ranked: StudyRow, scored: Mapping[str, StudyRow], name: str, behind: str) -> list[str]:
    label = f"{ranked.group}: {title_of(ranked.row)}{behind}"
    if name not in scored:
        return [label, NOT_RUN]
    cell = scored[name]
    if cell.failed:
        return [label, f"failed: {cell.failed}"]
    audit = audit_of(cell)
    masking, worst = audit.masking, audit.worst_case
    margin = None if on_frontier(key_of(cell)) else margin_over_frontier(cell, scored)
    return [
        label,
        f"{100 * audit.clean.value:.1f}",
        f"{100 * masking.pgd20:.1f}",
        f"**{100 * worst.value:.1f}** ({100 * worst.low:.1f} to {100 * worst.high:.1f})",
        *(f"{100 * part:.1f}" for part in (masking.optimizer, masking.gradient, masking.rest)),
        "" if margin is None else f"{100 * margin:+.1f}",
    ]
