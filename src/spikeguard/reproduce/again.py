"""Train and measure the network of a record again, and say whether its numbers hold within chance.

The images are the same, so two trainings differ by what a seed, a machine or a library changes. Several
seeds, in the record or now, measure how much that is (Student's t); with one on each side only the choice of
images sets the scale (two independent shares), and the result says that the seeds' own spread is unknown.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean

from spikeguard.auditing.compare import Z
from spikeguard.auditing.state import digest
from spikeguard.auditing.suite import fingerprint
from spikeguard.data.images import Dataset, Images
from spikeguard.data.sources import load_data
from spikeguard.errors import UserError
from spikeguard.records.build import frozen
from spikeguard.records.lock import locked
from spikeguard.records.reproduction import Agreement, AgreementRecord, Measured
from spikeguard.records.schema import Accuracy, Origin
from spikeguard.records.tables import TableRow
from spikeguard.records.training import TrainingRecord
from spikeguard.report.text import percent
from spikeguard.reproduce.claims import CLEAN, VALIDATION, Claim
from spikeguard.reproduce.sources import Source, source_of
from spikeguard.runtime.machine import machine
from spikeguard.stats import student
from spikeguard.sweep.cells import Cell, Context, hash_of, train_cell
from spikeguard.tables.measure import Conditions, Subject, Watch, rows_of, slug
from spikeguard.threat import THREATS
from spikeguard.training.builder import pick_device, training_parts
from spikeguard.training.load import load_classifier
from spikeguard.training.recipe import Recipe

RECORD_NAME = "agreement.json"


@dataclass(frozen=True)
class Again:
    """How a network is made again: how many seeds, from its own on; where; with which data and device."""

    seeds: int = 1
    out: Path | None = None
    data_dir: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Trained:
    """A network that was trained again, and what its attacks left."""

    training: TrainingRecord
    row: TableRow | None


def reproduce_record(
    path: Path, cell: str | None, how: Again, watch: Watch, data: Dataset | None = None
) -> tuple[AgreementRecord, Path]:
    """Train and measure the network of a record again; the comparison, and the file it was written to.

    ``data`` None loads what the recipe names. The same call goes on where an earlier one stopped.
    UserError: no recipe, other images than those of the record; Interrupted after ``watch.stop``.
    """
    begun, source = time.perf_counter(), source_of(path, cell)
    if data is None:
        data = load_data(source.recipe.data, how.data_dir or source.data_dir)
    images = source.pick(data)
    if source.images is not None and digest(images.pixels(), images.y) != source.images:
        raise UserError(f"{path}: is about other images than those of {data.name} here")
    where = f"{slug(source.cell)}-{hash_of([source.recipe.values(), source.about, str(path.resolve())])[:8]}"
    out = how.out or Path("reproduced") / where
    seeds = tuple(range(source.recipe.seed, source.recipe.seed + how.seeds))
    with locked(out):
        found = [_again(source, seed, (data, images), (out, how.device), watch) for seed in seeds]
    others = any(claim.others for claim in source.claims)
    same = None
    if source.weights is not None and found[0].training.weights is not None:
        same = found[0].training.weights == source.weights
    record = AgreementRecord(
        str(path),
        source.about,
        source.cell,
        frozen(source.recipe.values()),
        seeds,
        others or how.seeds > 1,
        tuple(_compared(claim, source, found, data) for claim in source.claims),
        machine(),
        round(time.perf_counter() - begun, 1),
        same,
        _older_suite(source),
    )
    record.write(out / RECORD_NAME)
    return record, out / RECORD_NAME


def _again(
    source: Source,
    seed: int,
    what: tuple[Dataset, Images],
    place: tuple[Path, str | None],
    watch: Watch,
) -> Trained:
    """Train the network with a seed, and attack it as the record's was."""
    (data, images), (out, device) = what, place
    recipe = Recipe.of({**source.recipe.values(), "seed": seed})
    cell = Cell("", source.cell, seed, recipe)
    context = Context(out, data, device, watch.progress, watch.stop)
    training = train_cell(context, cell, cell.name)
    columns = tuple(dict.fromkeys(c.column.name for c in source.claims if c.column is not None))
    if source.budget is None or not columns:
        return Trained(training, None)
    by_name = {c.column.name: c.column for c in source.claims if c.column is not None}
    threat = THREATS[source.budget.norm](_one(source.budget.eps))
    conditions = Conditions(
        [by_name[name] for name in columns],
        (threat,),
        out,
        source.seed,
        source.batch_size,
        extra=source.extra,
    )
    folder = context.run_folder(cell)
    net = load_classifier(folder, str(pick_device(device)))
    origin = Origin(None, recipe.data, images=len(images), recipe=frozen(recipe.values()))
    subject = Subject(cell.name, net, images.to(pick_device(device)), origin)
    whole = replace(watch, done=0, total=conditions.passes(len(images)))
    *_, row = rows_of(subject, conditions, whole)
    return Trained(training, row)


def _older_suite(source: Source) -> str | None:
    """The suite of the record's audit where today's has other attacks."""
    suite = source.suite
    if suite is None or source.budget is None:
        return None
    known = {fingerprint(suite.effort, source.budget.norm, random) for random in (False, True)}
    return None if suite.hash in known else suite.version


def _one(eps: float | tuple[float, ...]) -> float:
    if isinstance(eps, tuple):
        raise UserError("reproduce: a record with one budget for each image cannot be measured again")
    return eps


def _compared(claim: Claim, source: Source, found: Sequence[Trained], data: Dataset) -> Measured:
    """A number of the record beside those of the networks trained now."""
    again = tuple(_measured(claim, source, one, data) for one in found)
    published = claim.published
    if not isinstance(published, Accuracy):
        published = Accuracy.of(published, again[0].n)
    values = [a.value for a in again]
    allowed = allowance((published.value, *claim.others), values, published.n)
    apart = abs(published.value - fmean(values))
    says: Agreement = "same" if apart == 0 else "agrees" if apart <= allowed else "differs"
    return Measured(claim.what, published, again, allowed, says)


def _measured(claim: Claim, source: Source, one: Trained, data: Dataset) -> Accuracy:
    if claim.what == VALIDATION:
        held = training_parts(source.recipe, data)[1]
        return Accuracy.of(one.training.validation_accuracy or 0.0, len(held))
    assert one.row is not None
    assert source.budget is not None
    if claim.what == CLEAN:
        return one.row.clean
    assert claim.column is not None
    cell = one.row.cell(claim.column.name, _one(source.budget.eps))
    if cell is None or cell.accuracy is None:
        raise UserError(f"reproduce: {claim.what} has no number: {cell and cell.failed}")
    if claim.own:
        assert cell.masking is not None
        return Accuracy.of(cell.masking.pgd20, cell.accuracy.n)
    return cell.accuracy


def allowance(before: Sequence[float], now: Sequence[float], images: int) -> float:
    """How far the first of some shares may lie from the mean of those measured now, by chance (95 %).

    Never less than two networks that are right on as many images, each chosen on its own, may differ.

    >>> from spikeguard.reproduce.again import allowance
    >>> round(allowance([0.5], [0.5], 100), 3)
    0.139
    """
    share = fmean([*before, *now])
    by_images = sqrt(2 * share * (1 - share) / images)
    freedom = len(before) + len(now) - 2
    if not freedom:
        return Z * by_images
    squares = sum((v - fmean(group)) ** 2 for group in (before, now) for v in group)
    by_seeds = sqrt(squares / freedom * (1 + 1 / len(now)))
    return max(student(freedom) * by_seeds, Z * by_images)


def rows(record: AgreementRecord) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the comparison, in %."""
    header = ["", "record", "again", "apart", "chance allows", ""]
    return header, [
        [
            n.what,
            percent(n.published.value),
            ", ".join(percent(a.value) for a in n.again),
            percent(abs(n.published.value - fmean(a.value for a in n.again))),
            percent(n.allowed),
            n.says,
        ]
        for n in record.numbers
    ]


def verdict(record: AgreementRecord) -> str:
    """Whether the record holds, in a sentence."""
    scale = "what seeds change" if record.spread_known else "what the choice of images explains"
    more = (
        "" if record.spread_known else "; how much a seed alone changes is not known: --seeds 3 measures it"
    )
    if record.older_suite is not None:
        more += f"; the record was judged by {record.older_suite}, whose attacks were others"
    wrong = [n.what for n in record.numbers if n.says == "differs"]
    if wrong:
        return f"Differs by more than {scale}: {', '.join(wrong)}{more}."
    same = "The same weights, bit by bit. " if record.same_weights else ""
    return f"{same}Agrees: every number lies within {scale}."
