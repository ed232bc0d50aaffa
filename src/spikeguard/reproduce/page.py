"""The page of a reproduction: the paper's number, ours by its attack, and the audit's, side by side."""

from __future__ import annotations

from pathlib import Path

from spikeguard.auditing.export import budget_text
from spikeguard.records.files import write_bytes
from spikeguard.records.reproduction import ReproductionRecord
from spikeguard.records.schema import Budget
from spikeguard.report.text import environment
from spikeguard.reproduce.compare import CLEAN, Line, Pair, attacks, audit_column, gains, lines
from spikeguard.reproduce.paper import Paper
from spikeguard.runtime.picture import INK, figure, svg
from spikeguard.runtime.shown import printable
from spikeguard.tables.columns import title
from spikeguard.tables.files import write_texts

OURS, PUBLISHED, WORST = "#1f6f8b", "#c9ccd1", "#b4532a"


def number(value: float | None) -> str:
    """A percentage with one decimal, '-' for none."""
    return "-" if value is None else f"{value:.1f}"


def as_published(value: float | None) -> str:
    """A number of the paper with the digits that it has, at least one; '-' for none."""
    return "-" if value is None else f"{value:.2f}".removesuffix("0")


def both(pair: Pair) -> str:
    """The paper's number and ours."""
    return f"{as_published(pair.published)} / {number(pair.ours)}"


def cost(line: Line) -> str:
    """Seconds of training and of all attacks; '-' for a row that is not finished."""
    return f"{line.training_seconds:.0f} + {line.attack_seconds:.0f}" if line.seeds else "-"


def worst(line: Line) -> str:
    """What the audit leaves, with its interval; a star where it calls itself unreliable."""
    pair = line.worst
    if pair.ours is None:
        return "-"
    star = "" if pair.reliable else "*"
    return f"{number(pair.ours)}{star} ({number(pair.low)} to {number(pair.high)})"


def table(record: ReproductionRecord, paper: Paper) -> tuple[list[str], list[list[str]]]:
    """Header and rows: 'paper / ours' under the paper's attacks, then what the audit leaves, and the cost."""
    header = ["row", "seeds", "clean", *(title(c) for c in attacks(record)), title(audit_column(record))]
    header += ["training + attacks, s"]
    rows = [
        [
            line.row.name,
            str(line.seeds),
            *(both(pair) for pair in line.pairs.values()),
            worst(line),
            cost(line),
        ]
        for line in lines(record, paper)
    ]
    return header, rows


def notes(record: ReproductionRecord, paper: Paper) -> list[str]:
    """What a reader of the table has to know, a sentence each."""
    scale, missing = paper.scale(record.scale), _unfinished(record, paper)
    said = [
        f"Each cell: paper / ours, accuracy in %; '-': no number. {paper.numbers}",
        f"Scale {record.scale}: {scale.what}. {record.images} test images at linf "
        f"{budget_text(Budget('linf', record.eps))}; in brackets: the 95 % interval over the choice of "
        "images.",
    ]
    if missing:
        said.append(f"Not finished: {', '.join(missing)}.")
    if failed := [f"{line.row.name}: {line.failed}" for line in lines(record, paper) if line.failed]:
        said.append(f"Failed: {'; '.join(failed)}.")
    return said


def _unfinished(record: ReproductionRecord, paper: Paper) -> list[str]:
    return [line.row.name for line in lines(record, paper) if not line.seeds and not line.failed]


def not_reproduced(record: ReproductionRecord, paper: Paper) -> list[str]:
    """Parts of the paper without a number here, and why."""
    every = (*paper.experiment(record.experiment).not_reproduced, *paper.not_reproduced)
    return [f"{one.what}: not reproduced; {one.why}" for one in every]


def reading(record: ReproductionRecord, paper: Paper) -> list[str]:
    """What the numbers say, a sentence each, chosen and filled by the record."""
    found = gains(record, paper)
    claimed = [g for g in found if g.published is not None and g.column != CLEAN]
    said, titles = [], {c.name: title(c) for c in record.columns}
    if claimed:
        agree = [g for g in claimed if g.same_sign]
        beyond = [g for g in agree if not g.chance]
        said.append(
            f"Under the paper's attacks {len(agree)} of {len(claimed)} gains have the paper's sign, "
            f"{len(beyond)} of them beyond what the choice of images explains."
        )
    for training in dict.fromkeys(g.training for g in found):
        for g in (g for g in found if g.training == training and g.column == "worst case"):
            own = [o for o in found if (o.training, o.method) == (training, g.method)]
            weak = max((o for o in own if o.column not in (CLEAN, "worst case")), key=lambda o: o.ours)
            said.append(
                f"{g.method} on {training}: {g.ours:+.1f} points in the worst case"
                + (" (may be chance)" if g.chance else "")
                + f", {weak.ours:+.1f} under {titles[weak.column]}. "
                + (
                    f"{weak.ours - max(g.ours, 0):.1f} points of that gain do not survive the audit."
                    if weak.ours > max(g.ours, 0)
                    else "The audit leaves all of it."
                )
            )
    return said


def picture(record: ReproductionRecord, paper: Paper) -> str:
    """Each row's clean accuracy, that under the longest attack of the paper, the worst case, and the paper's.

    '' before the first row is finished.
    """
    done = [line for line in lines(record, paper) if line.seeds]
    if not done:
        return ""
    longest = attacks(record)[-1].name if record.experiment != "advanced" else "apgd40"
    drawn, axes = figure(max(6.8, 1.6 + 1.15 * len(done)), 3.2)
    axis = axes[0][0]
    for place, line in enumerate(done):
        for column, name in enumerate((CLEAN, longest)):
            pair, left = line.pairs[name], place + 0.36 * (column - 1)
            if pair.published is not None:
                axis.bar(left - 0.075, pair.published, 0.15, color=PUBLISHED, lw=0)
            if pair.ours is not None:
                axis.bar(left + 0.075, pair.ours, 0.15, color=OURS, alpha=1 - 0.45 * (1 - column), lw=0)
        if line.worst.ours is not None:
            low, high = line.worst.ours - line.worst.low, line.worst.high - line.worst.ours
            axis.bar(place + 0.3, line.worst.ours, 0.15, color=WORST, lw=0)
            axis.errorbar(
                place + 0.3, line.worst.ours, [[max(low, 0)], [max(high, 0)]], color=INK, lw=1, capsize=2
            )
    axis.set_xticks(range(len(done)), [line.row.name for line in done], fontsize=8)
    names = ("the paper", "ours, clean", f"ours, {longest}", "worst case of the audit")
    colors = ((PUBLISHED, 1.0), (OURS, 0.55), (OURS, 1.0), (WORST, 1.0))
    keys = [axis.bar(0, 0, color=color, alpha=alpha, lw=0) for color, alpha in colors]
    axis.legend(
        keys, names, frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.14)
    )
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(0, 102)
    return svg(drawn)


def write_pages(record: ReproductionRecord, paper: Paper, folder: Path) -> list[Path]:
    """Write ``index.html``, and the table as CSV, LaTeX and Markdown; returns the files."""
    said = [*notes(record, paper), *reading(record, paper), *not_reproduced(record, paper)]
    written = write_texts(folder / "table", *table(record, paper), said)
    drawn = picture(record, paper)
    page = (
        environment()
        .get_template("reproduction.html")
        .render(
            record=record,
            title=paper.experiment(record.experiment).title,
            source=paper.source,
            header=table(record, paper)[0],
            lines=lines(record, paper),
            notes=notes(record, paper),
            reading=reading(record, paper),
            gains=gains(record, paper),
            number=number,
            as_published=as_published,
            cost=cost,
            titles={c.name: title(c) for c in record.columns},
            picture=drawn,
            assumed=paper.assumed,
            missing=not_reproduced(record, paper),
        )
    )
    write_bytes(folder / "index.html", printable(page).encode())
    if drawn:
        write_bytes(folder / "table.svg", drawn.encode())
        written.append(folder / "table.svg")
    return [folder / "index.html", *written]
