"""An audit's page: one self-contained HTML file from its record and witnesses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spikeguard.auditing.compare import methods
from spikeguard.auditing.flags import KINDS
from spikeguard.auditing.witnesses import Witnesses
from spikeguard.records.files import write_bytes
from spikeguard.report import audit_plots, plots
from spikeguard.report.demo_page import environment
from spikeguard.threat import Threat

PICTURED = 8


def write_page(
    record: Mapping[str, Any], x: Tensor, y: Tensor, witnesses: Witnesses, threat: Threat, path: Path
) -> Path:
    """Render ``record`` to ``path``, with the first witnesses as pictures; returns the path."""
    page = (
        environment()
        .get_template("audit.html")
        .render(
            record=record,
            kinds=KINDS,
            falling=audit_plots.falling(record),
            families=audit_plots.families(record),
            curve=audit_plots.against_eps(record),
            steps=audit_plots.against_steps(record) if record["convergence"] else "",
            gap=audit_plots.gap(record) if record["masking"] else "",
            twins=_pictures(record, x, y, witnesses, threat),
            methods=methods(record),
            budget=_budget(record),
        )
    )
    write_bytes(path, page.encode())
    return path


def _budget(record: Mapping[str, Any]) -> str:
    ((norm, eps),) = record["threat"].items()
    if isinstance(eps, list):
        return f"{norm}, a budget an image"
    return f"{norm} {255 * eps:.3g}/255" if norm == "linf" else f"{norm} {eps:g}"


def _pictures(record: Mapping[str, Any], x: Tensor, y: Tensor, witnesses: Witnesses, threat: Threat) -> str:
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        return ""
    rows, found = witnesses.read(x, threat)
    broken = rows.new_tensor(record["first"])[rows] >= 0  # a random model has an input for every image
    rows, found = rows[broken], found[broken]
    order = rows.argsort()[:PICTURED]
    if not len(order):
        return ""
    rows, found = rows[order], found[order]
    names = [
        (f"label {int(y[r])}", str(record["members"][record["first"][int(r)]]["name"])[:14]) for r in rows
    ]
    return plots.twins(x[rows].cpu().numpy(), found.cpu().numpy(), names, 5.0)
