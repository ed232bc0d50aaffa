"""An audit's page: one self-contained HTML file from its record and witnesses."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from spikeguard.auditing.export import budget_text, methods
from spikeguard.auditing.flags import KINDS
from spikeguard.auditing.suite import PGD_20
from spikeguard.auditing.witnesses import Witnesses
from spikeguard.records.files import write_bytes
from spikeguard.records.schema import AuditRecord
from spikeguard.report import audit_plots, plots
from spikeguard.report.text import environment
from spikeguard.runtime.shown import printable
from spikeguard.threat import Threat

PICTURES = 8


def write_page(
    record: AuditRecord, x: Tensor, y: Tensor, witnesses: Witnesses, threat: Threat, path: Path
) -> Path:
    """Render an audit to ``path``, with the first witnesses as pictures; returns the path."""
    page = (
        environment()
        .get_template("audit.html")
        .render(
            record=record,
            kinds=KINDS,
            own=record.alone.get(PGD_20.id),
            falling=audit_plots.falling(record),
            families=audit_plots.families(record),
            curve=audit_plots.against_eps(record),
            steps=audit_plots.against_steps(record),
            gap=audit_plots.gap(record),
            pictures=_pictures(record, x, y, witnesses, threat),
            methods=methods(record),
            budget=f"{record.threat.norm} {budget_text(record.threat)}",
        )
    )
    write_bytes(path, printable(page).encode())
    return path


def _pictures(record: AuditRecord, x: Tensor, y: Tensor, witnesses: Witnesses, threat: Threat) -> str:
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        return ""
    rows, found = witnesses.read(x, threat)
    broken = rows.new_tensor(record.first_by)[rows] >= 0  # a random model has an input for every image
    rows, found = rows[broken], found[broken]
    order = rows.argsort()[:PICTURES]
    if not len(order):
        return ""
    rows, found = rows[order], found[order]
    titles = [record.members[record.first_by[int(r)]].title for r in rows]
    names = [(f"label {int(y[r])}", title[:14]) for r, title in zip(rows, titles, strict=True)]
    return plots.image_rows(x[rows].cpu().numpy(), found.cpu().numpy(), names, 5.0)
