"""The notes of the study's page: what ran, what the columns mean, which choices favor which defense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from spikeguard.auditing.suite import VERSION, Effort
from spikeguard.records.studies import StudyRecord, StudyRow
from spikeguard.report.markdown import bullets, paragraph
from studies.embedded import matrix
from studies.embedded.matrix import StudySize
from studies.embedded.ranking import fingerprint_of

NOT_RUN = "not run"
WITHOUT_LOCAL_SEARCH = (
    f"The present {VERSION} also searches locally from the best points that gradients found, and breaks "
    "more. All worst cases of this page are too high, and the ranks of close rows may change. The next sweep "
    "judges all rows again."
)
LONG = 60
"""Seconds that a training should take at most."""


def what_ran(record: StudyRecord, cells: Mapping[str, StudyRow], rows: int) -> list[str]:
    """How many networks of the study ran, and which ones an older version made."""
    seeds = sorted({c.seed for c in cells.values()})
    begun, planned = len(record.cells) - len(cells), planned_seeds(record)
    text = (
        f"{len(record.cells)} of {rows * planned} networks ({rows} ways to train, {planned} seeds) were run; "
        f"the means are over {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds)) or NOT_RUN}"
    )
    text += f" ({begun} networks of a seed that is not complete are left out)." if begun else "."
    now = {c.name: fingerprint_of(c) for c in matrix.cells(StudySize(planned))}
    old = {
        f"{c.group}: {c.row}" for name, c in cells.items() if c.fingerprint and c.fingerprint != now.get(name)
    }
    lines = paragraph(text)
    suites = {c.audit.suite.version for c in cells.values() if c.audit} - {VERSION}
    if suites:
        lines += ["", *paragraph(f"**Judged by {' and '.join(sorted(suites))}.** {WITHOUT_LOCAL_SEARCH}")]
    elif old:
        lines += [
            "",
            *paragraph(
                f"Made by an older version, to run again in the next sweep: {', '.join(sorted(old))}."
            ),
        ]
    return lines


def planned_seeds(record: StudyRecord) -> int:
    """How many seeds the study has: those of the matrix, and those that ran."""
    ran = [1 + c.seed for c in record.cells.values()]
    return max(StudySize().seeds, *(1 + seed for _, _, seed in record.planned), *ran)


def retrained(record: StudyRecord, part: Mapping[str, StudyRow]) -> set[str]:
    """Networks of a part of the record that were trained again, because the ranked network was lost."""
    cells = record.cells
    return {
        name
        for name, row in part.items()
        if name in cells and row.seconds is not None and row.seconds != cells[name].seconds
    }


def remarks(record: StudyRecord, part: Mapping[str, StudyRow], effort: Effort) -> dict[str, str]:
    """What stands behind a network's name: that it was trained again, that an older version scored it."""
    now = {c.name: fingerprint_of(c, effort) for c in matrix.cells(StudySize(1))}
    again = retrained(record, part)
    old = {name for name, row in part.items() if name in now and row.fingerprint != now[name]}
    return {
        name: " (trained again)" * (name in again) + " (older version)" * (name in old)
        for name in again | old
    }


def notes(record: StudyRecord) -> list[str]:
    """The section at the end of the page."""
    size, eps = record.settings, f"{255 * record.eps:.0f}/255"
    columns = [
        "clean: accuracy on all validation images.",
        f"own surrogate: accuracy under PGD-20 with the training surrogate, on {size.ranked_on} validation "
        f"images at Linf {eps}.",
        "worst case: accuracy on the same images under all attacks of the quick audit. Every network also "
        "meets the attacks that are adaptive to any of the defenses.",
        "masked: own surrogate minus worst case. That much of the robustness is not real.",
        "margin: worst case minus the frontier of AT and TRADES of the same seed, at the network's own clean "
        "accuracy, both on the attacked images. The frontier is the upper hull of their points; beyond its "
        "point of best clean accuracy that point counts.",
        "cost: training time over that of `none` of the same group and seed, else over that of AT. It is "
        "given where both trained on the same kind of machine with as many threads, and includes the load of "
        "other work. [Defenses](../defenses.md) has costs measured side by side.",
        "flags: error flags of the audit. A number with such a flag says little.",
    ]
    limits = [
        "Differences below ten points are not significant on so few images and seeds.",
        "For stochastic networks the quick audit averages 4 gradients a step only.",
        f"All networks use the recipe `vanilla` (the demo's network and neurons), {size.epochs} epochs and "
        "the defense. Some defenses need more passes than AT; none gets more epochs.",
    ]
    favors = [
        "TGO has the constants of the demo. They were found on this data by a search without a record.",
        "AT and TRADES have six training budgets. No other defense was tuned.",
        "Other defenses have their published constants, but the neurons and the schedule of the demo: DLIF "
        "decay 0.5 instead of 0.99, HoSNN 0.5 instead of 0.8, RandHet threshold 1 instead of 0.5, FEEL an "
        "initial leak of 0.5 instead of 1, RAT weight decay 5e-4 instead of 0, MPPD the plain loss instead "
        "of one half clean and one half disturbed.",
        "The weights of MPD-SGR and SR, both input randomizations and the share of conversion are ours.",
        "Without AT, MPPD, TV-l1 and the shift guard make adversarial inputs of their own: MPPD at "
        "its published 4/255, our guards at 16/255.",
        "EMA estimates batch norm again on clean images, with AT too.",
    ]
    lines = ["## Notes", "", "Columns:", "", *bullets(columns), "", "Limits:", "", *bullets(limits), ""]
    lines += ["Choices that favor some defenses:", "", *bullets(favors), ""]
    return [*lines, *_cost_of_study(record)]


def _cost_of_study(record: StudyRecord) -> list[str]:
    """How long the study took, and on which machines."""
    done = [c for part in (record.cells, record.confirmed) for c in part.values() if not c.failed]
    if not done:
        return []
    seconds = [c.seconds or 0.0 for c in done]
    spent = sum(seconds) + sum(a.seconds for c in done for a in (c.audit, c.low) if a)
    for part in (record.test, record.full):
        spent += sum(row.audit.seconds for row in part.values() if row.audit)
        spent += sum(part[name].seconds or 0.0 for name in retrained(record, part))
    long = sum(s > LONG for s in seconds)
    text = [
        f"{long} of {len(done)} trainings took more than {LONG} s, the longest {max(seconds):.0f} s.",
        f"Trainings and attacks took {spent / 60:.0f} minutes in all, without checks and controls; networks "
        "that ran side by side count in full.",
        f"Ranked and confirmed on: {_machines(done)}.",
    ]
    return ["Cost of the study:", "", *bullets(text), ""]


def _machines(rows: Sequence[StudyRow]) -> str:
    def name(row: StudyRow) -> str:
        machine = row.machine
        if machine is None:
            return "an unknown machine"
        threads = f"{machine.threads} thread{'' if machine.threads == 1 else 's'}"
        return machine.device or f"{', '.join(machine.instructions)} ({threads})"

    return "; ".join(f"{count} on {place}" for place, count in Counter(map(name, rows)).most_common())
