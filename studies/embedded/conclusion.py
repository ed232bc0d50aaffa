"""Does the best row lie above the frontier? Fresh seeds, which did not choose it, answer."""

from __future__ import annotations

from spikeguard.records.studies import StudyRecord
from spikeguard.report.markdown import bullets, paragraph
from studies.embedded.frontier import (
    best,
    grouped,
    key_of,
    lower_bound,
    margins_over_frontier,
    mean_worst_case,
    most_robust,
)
from studies.embedded.matrix import CONFIRMING, Key, on_frontier, title_of
from studies.embedded.notes import NOT_RUN, remarks
from studies.embedded.scores import seeds_that_chose


def conclusion(record: StudyRecord) -> list[str]:
    """The section about the frontier."""
    lines = ["## Above the frontier?", ""]
    if not record.best:
        text = f"{NOT_RUN}: the best row is chosen when every network is ranked, then tested on fresh seeds."
        return [*lines, text, ""]
    reasons: dict[Key, list[str]] = {}
    for reason, key in (("mean margin", record.best), ("mean worst case", record.most_robust)):
        if key:
            reasons.setdefault(key, []).append(reason)
    rows = [key_of(row) for row in record.confirmed.values()]
    confirmed = dict.fromkeys(key for key in rows if not on_frontier(key))
    items = [f"Highest {' and '.join(why)}: {_fresh_result(record, key)}" for key, why in reasons.items()]
    items += [
        f"Chosen when the study had fewer rows or seeds: {_fresh_result(record, key)}"
        for key in confirmed
        if key not in reasons
    ]
    if len(confirmed) > 1:
        items += [f"These are {len(confirmed)} tests on the same five seeds, each at its own level of 5 %."]
    for reason, now in (("mean margin", best(record.cells)), ("mean worst case", most_robust(record.cells))):
        if now and now not in {*confirmed, *reasons}:
            items += [f"By now {_name(now)} has the highest {reason}; it was not tested on fresh seeds."]
    behind = remarks(record, record.full, "full")
    items += [_full_audit(record, name, behind.get(name, "")) for name in record.full if name in record.cells]
    added = "" if confirmed.keys() <= reasons.keys() else ", and rows or seeds were added later"
    note = (
        f"The rows with the highest mean margin and the highest mean worst case (ranked on "
        f"{seeds_that_chose(record)}) were trained and ranked again, with the frontier, on five seeds that "
        "did not choose them. The images are those of the ranking: the bounds cover the choice of the "
        "images, not that rows were chosen on them. Only the table above has other images, for one "
        f"seed{added}."
    )
    return [*lines, *bullets(items), "", *paragraph(note), ""]


def _name(key: Key) -> str:
    return f"{key[0]}: {title_of(key[1])}"


def _fresh_result(record: StudyRecord, key: Key) -> str:
    """What the fresh seeds say about a row."""
    rows = grouped(record.confirmed.values())
    row = [c for c in rows.get(key, []) if not c.failed]
    margins = margins_over_frontier(row, record.confirmed)
    frontier = {(group, name) for group, name, _ in record.planned if on_frontier((group, name))}
    if len(margins) < CONFIRMING or not frontier <= rows.keys():
        return f"{_name(key)}. {len(margins)} of the five fresh seeds ran: no claim is made."
    bound = lower_bound(row, record.confirmed)
    assert bound is not None
    verb = "lies above" if bound > 0 else "does not lie above"
    sure = "" if bound > 0 else " for certain"
    return (
        f"{_name(key)}. It {verb} the AT/TRADES frontier at its own clean accuracy{sure}: mean margin "
        f"{100 * sum(margins) / len(margins):+.1f} points, lower bound {100 * bound:+.1f} (5 %, bootstrap "
        f"over seeds and images); mean worst case {100 * mean_worst_case(row):.1f} %."
    )


def _full_audit(record: StudyRecord, name: str, behind: str) -> str:
    """What the full audit leaves of what the quick audit had left, on the same images."""
    ranked, full = record.cells[name], record.full[name]
    if full.audit is None or ranked.audit is None:
        return f"{_name(key_of(ranked))} under `full`: failed: {full.failed or ranked.failed}."
    worst, errors = full.audit.worst_case, [f for f, level in full.audit.flags if level == "error"]
    flagged = f"flags: {', '.join(errors)}" if errors else "no error flag"
    return (
        f"The first network of {_name(key_of(ranked))}{behind} under `full` ({full.audit.members} attacks), "
        f"on the images of the ranking: {100 * worst.value:.1f} % ({100 * worst.low:.1f} to "
        f"{100 * worst.high:.1f}), where the ranking has {100 * ranked.audit.worst_case.value:.1f} %; "
        f"{flagged}."
    )
