"""The page of the study, from its record alone: a table for each group of rows, notes below."""

from __future__ import annotations

from collections.abc import Sequence

from spikeguard.records.studies import StudyRecord, StudyRow
from spikeguard.report.markdown import table
from studies.embedded.conclusion import conclusion
from studies.embedded.frontier import (
    audit_of,
    finished_seeds,
    grouped,
    margins_over_frontier,
    mean_worst_case,
)
from studies.embedded.matrix import ADVERSARY, Key, on_frontier, title_of
from studies.embedded.notes import NOT_RUN, notes, what_ran
from studies.embedded.scores import scores

BUDGET = f"PGD-{ADVERSARY['steps']} at {255 * ADVERSARY['eps']:.0f}/255"
TITLES = {
    "BPTT": "Without adversarial training",
    "AT": f"With adversarial training ({BUDGET})",
    "regimes": f"Other training regimes ({BUDGET})",
    "frontier": "The frontier: AT and TRADES at other training budgets",
}
HEADER = ("defense", "seeds", "clean", "own surrogate", "worst case", "masked", "margin", "cost", "flags")


def page(record: StudyRecord) -> str:
    """docs/results/embedded.md."""
    cells = finished_seeds(record.cells)
    planned = list(dict.fromkeys((group, row) for group, row, _ in record.planned))
    eps = f"{255 * record.eps:.0f}/255"
    lines = [
        "# Defenses on the embedded images",
        "",
        "Every defense trains the same small network on embedded Fashion-MNIST, with and without",
        f"adversarial training, and meets the same attacks at Linf {eps}. Accuracies are in %.",
        "[Notes](#notes) explain the columns and say which choices favor which defense. Made by",
        "`spikeguard sweep embedded` from its record.",
        "",
        "![clean and worst-case accuracy of every defense, over the frontier of AT and TRADES](embedded.svg)",
        "",
        *what_ran(record, cells, len(planned)),
        "",
    ]
    for group, title in TITLES.items():
        lines += [f"## {title}", "", *_group_table(record, cells, [k for k in planned if k[0] == group]), ""]
    return "\n".join([*lines, *scores(record), *conclusion(record), *notes(record)])


def _group_table(record: StudyRecord, cells: dict[str, StudyRow], keys: list[Key]) -> list[str]:
    """The rows of a group, the most robust first."""
    if not keys:
        return [f"{NOT_RUN}."]
    rows, group = grouped(cells.values()), keys[0][0]
    header = [*HEADER, f"worst case at {255 * record.low:.0f}/255"] if group == "BPTT" else [*HEADER]
    base = _sound(rows.get((group, "none"), [])) or _sound(rows.get(("AT", "none"), []))

    def worst_case(key: Key) -> float:
        sound = _sound(rows.get(key, []))
        return -mean_worst_case(sound) if sound else 1.0

    return table(header, [_line(k, rows.get(k, []), cells, base) for k in sorted(keys, key=worst_case)])


def _sound(row: Sequence[StudyRow]) -> list[StudyRow]:
    return [c for c in row if not c.failed]


def _line(
    key: Key, row: Sequence[StudyRow], cells: dict[str, StudyRow], base: Sequence[StudyRow]
) -> list[str]:
    sound, title = _sound(row), title_of(key[1])
    if not sound:
        return [title, "0", f"failed: {row[0].failed}" if row else NOT_RUN]
    audits = [audit_of(c) for c in sound]
    clean, worst = _mean([c.validation_accuracy or 0.0 for c in sound]), mean_worst_case(sound)
    own = _mean([a.masking.pgd20 for a in audits])
    margins = [] if on_frontier(key) else margins_over_frontier(sound, cells)
    costs = _costs(sound, base)
    errors = sorted({flag for a in audits for flag, level in a.flags if level == "error"})
    line = [title, str(len(sound)), *(f"{100 * v:.1f}" for v in (clean, own, worst, own - worst))]
    line += [
        f"{100 * _mean(margins):+.1f}" if margins else "",
        f"{_mean(costs):.1f}" if costs else "",
        ", ".join(errors),
    ]
    if key[0] == "BPTT":
        line.append(f"{100 * _mean([c.low.worst_case.value for c in sound if c.low]):.1f}")
    return line


def _costs(row: Sequence[StudyRow], base: Sequence[StudyRow]) -> list[float]:
    """Training time over that of the base of the same seed, where both had the same kind of machine."""
    pairs = [(c, b) for c in row for b in base if c.seed == b.seed and c.machine and c.machine == b.machine]
    return [c.seconds / b.seconds for c, b in pairs if c.seconds is not None and b.seconds]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
