"""Records of a study, made up."""

from collections.abc import Mapping
from dataclasses import replace

from spikeguard.records.schema import Accuracy, Level, Masking, SuiteId
from spikeguard.records.studies import StudyAudit, StudyRecord, StudyRow, StudySettings


def made_up_row(
    group: str, row: str, seed: int, clean: float, robust: float, fingerprint: str | None = None
) -> StudyRow:
    """A network with these accuracies on a hundred images."""
    audit = StudyAudit(
        clean=Accuracy(clean, clean, clean, 100),
        worst_case=Accuracy(robust, robust - 0.1, robust + 0.1, 100),
        masking=Masking(pgd20=0.4, optimizer=0.1, gradient=0.1, rest=0.0, worst_case=robust),
        right=tuple(float(k < 100 * robust) for k in range(100)),
        right_clean=tuple(float(k < 100 * clean) for k in range(100)),
        flags=(),
        suite=SuiteId("made up", "quick", "none"),
        seconds=1.0,
    )
    low = replace(audit, worst_case=Accuracy(0.5, 0.4, 0.6, 100))
    return StudyRow(
        group, row, seed, fingerprint, seconds=1.0, validation_accuracy=clean, audit=audit, low=low
    )


def flagged(cell: StudyRow, *flags: tuple[str, Level]) -> StudyRow:
    """A network whose audit has these flags."""
    assert cell.audit
    return replace(cell, audit=replace(cell.audit, flags=flags))


def failed(cell: StudyRow, why: str) -> StudyRow:
    """A network that failed."""
    return replace(cell, audit=None, failed=why)


def many(seeds: int, lift: float = 0.05, start: int = 0) -> dict[str, StudyRow]:
    """Two points of the frontier and a row ``lift`` above it, whose level differs from seed to seed."""
    cells = {}
    for seed in range(start, start + seeds):
        level = 0.02 * (seed % 3)
        cells[f"a{seed}"] = made_up_row("frontier", "AT 4/255", seed, 0.8, 0.2 + level)
        cells[f"b{seed}"] = made_up_row("frontier", "AT 8/255", seed, 0.6, 0.4 + level)
        cells[f"c{seed}"] = made_up_row("AT", "TGO", seed, 0.7, 0.3 + lift + level)
    return cells


def record_of(cells: Mapping[str, StudyRow]) -> StudyRecord:
    """A study's record that holds these networks in its ranking and nothing else."""
    planned = tuple((c.group, c.row, c.seed) for c in cells.values())
    return StudyRecord(StudySettings(4, 100, 200), 25 / 255, 8 / 255, dict(cells), planned=planned)


def text_of(page: str) -> str:
    """A page without its line breaks."""
    return " ".join(page.split())
