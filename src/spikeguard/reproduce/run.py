"""Run an experiment of the paper: train each network, attack it, audit it; one record, which continues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spikeguard.auditing.suite import fingerprint
from spikeguard.data.images import Dataset, Images
from spikeguard.errors import UserError
from spikeguard.records.build import frozen
from spikeguard.records.lock import locked
from spikeguard.records.plain import plain
from spikeguard.records.reproduction import ReproductionRecord, ReproductionRow
from spikeguard.records.schema import Origin
from spikeguard.records.tables import TableColumn
from spikeguard.reproduce.paper import Paper, PaperRow
from spikeguard.runtime.machine import machine
from spikeguard.sweep.cells import Cell, Context, hash_of, machine_of, train_cell
from spikeguard.tables.columns import work
from spikeguard.tables.measure import Conditions, Subject, Watch, rows_of
from spikeguard.threat import Linf
from spikeguard.training.builder import pick_device, training_parts
from spikeguard.training.load import load_classifier
from spikeguard.training.recipe import Recipe

RECORD_NAME = "reproduction.json"
STAGES = "rows"
"""Folder of the records of single networks."""


@dataclass(frozen=True)
class Plan:
    """What is run: an experiment at a scale, ``rows`` of it (all if empty), each with these seeds."""

    experiment: str
    scale: str
    seeds: tuple[int, ...] = (0,)
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """One network to come: its row of the paper, and where it is kept."""

    row: PaperRow
    cell: Cell

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return self.cell.recipe


@dataclass(frozen=True)
class Attacks:
    """What every network meets: columns, test images and where these come from, the budget under Linf."""

    columns: Sequence[TableColumn]
    images: Images
    eps: float
    data_dir: str | None


def reproduce(
    paper: Paper,
    plan: Plan,
    out: Path,
    data: Dataset,
    *,
    device: str | None = None,
    data_dir: str | None = None,
    watch: Watch | None = None,
) -> ReproductionRecord:
    """Every network of the plan that ``out`` lacks, one after another; the record after each of them.

    The same call goes on where an earlier one stopped, inside a training, an attack or an audit. A network
    whose recipe, attacks or suite have changed is run again. UserError for an unknown row, a folder that is
    in use or holds another experiment; Interrupted after ``watch.stop``, with everything kept.
    """
    watch = watch or Watch()
    networks = planned(paper, plan)
    columns, scale = paper.columns(plan.experiment, plan.scale), paper.scale(plan.scale)
    images = data.test.balanced(scale.images)
    record = ReproductionRecord(
        plan.experiment,
        plan.scale,
        scale.images,
        paper.budget,
        columns,
        len(paper.experiment(plan.experiment).rows),
        machine(),
        deviations=paper.deviations(plan.experiment, plan.scale),
    )
    with locked(out):
        record = replace(record, rows=_earlier(paper, record, out))
        done = {(r.row, r.seed) for r in record.rows}
        waiting = [n for n in networks if (n.row.name, n.cell.seed) not in done]
        total = sum(_passes(n.recipe, data, columns, len(images)) for n in waiting)
        watch = replace(watch, done=0, total=total)
        record.write(out / RECORD_NAME)
        context = Context(out, data, device, stop=watch.stop)
        attacks = Attacks(columns, images.to(pick_device(device)), paper.budget, data_dir)
        for number, network in enumerate(waiting, 1):
            title = f"{number} of {len(waiting)}, {network.row.name} {network.cell.seed}"
            row = _run(network, title, context, attacks, watch)
            row.write(_file(out, network.cell))
            record = replace(record, rows=_in_order(paper, plan.experiment, (*record.rows, row)))
            record.write(out / RECORD_NAME)
            watch = replace(watch, done=watch.done + _passes(network.recipe, data, columns, len(images)))
    return record


def planned(paper: Paper, plan: Plan) -> list[Network]:
    """The networks of a plan, the first seed of all rows first; UserError for a row that is not there."""
    every = paper.experiment(plan.experiment).rows
    names = [row.name for row in every]
    if wrong := [name for name in plan.rows if name not in names]:
        raise UserError(f"reproduce: {plan.experiment} has no row {wrong[0]!r} (known: {', '.join(names)})")
    return [
        _network(paper, plan.experiment, plan.scale, row, seed)
        for seed in plan.seeds
        for row in every
        if not plan.rows or row.name in plan.rows
    ]


def _network(paper: Paper, experiment: str, scale: str, row: PaperRow, seed: int) -> Network:
    return Network(row, Cell("", row.name, seed, paper.recipe(experiment, scale, row, seed)))


def _file(out: Path, cell: Cell) -> Path:
    return out / STAGES / f"{cell.name}.json"


def _earlier(paper: Paper, record: ReproductionRecord, out: Path) -> tuple[ReproductionRow, ...]:
    """The networks that an earlier call has finished and that are not outdated, whatever their seeds."""
    if (path := out / RECORD_NAME).exists():
        before = ReproductionRecord.read(path)
        if (before.experiment, before.scale) != (record.experiment, record.scale):
            raise UserError(
                f"{out} holds {before.experiment} at scale {before.scale}: choose another folder with --out"
            )
    by_name = {row.name: row for row in paper.experiment(record.experiment).rows}
    found = []
    for file in sorted((out / STAGES).glob("*.json")):
        row = ReproductionRow.read(file)
        known = by_name.get(row.row)
        if known is not None:
            network = _network(paper, record.experiment, record.scale, known, row.seed)
            if row.fingerprint == _fingerprint(network.recipe, record.columns, record.images):
                found.append(row)
    return _in_order(paper, record.experiment, found)


def _in_order(paper: Paper, experiment: str, rows: Sequence[ReproductionRow]) -> tuple[ReproductionRow, ...]:
    order = [row.name for row in paper.experiment(experiment).rows]
    return tuple(sorted(rows, key=lambda r: (order.index(r.row), r.seed)))


def _fingerprint(recipe: Recipe, columns: Sequence[TableColumn], images: int) -> str:
    """A hash of what a row's numbers depend on: recipe, attacks, images, suite."""
    efforts = [fingerprint(c.effort) for c in columns if c.effort]
    return hash_of([recipe.values(), [plain(c) for c in columns], images, efforts])


def _passes(recipe: Recipe, data: Dataset, columns: Sequence[TableColumn], images: int) -> int:
    """About how many passes of single images a network takes, for the time left."""
    steps = 1 + sum(int(getattr(defense, "steps", 0)) for defense in recipe.defenses)
    return len(training_parts(recipe, data)[0]) * recipe.epochs * steps + images * sum(map(work, columns))


def _run(
    network: Network,
    title: str,
    context: Context,
    attacks: Attacks,
    watch: Watch,
) -> ReproductionRow:
    """Train a network and measure it; ``failed`` with the reason where that is not possible."""
    columns, images = attacks.columns, attacks.images
    cell, recipe = network.cell, network.recipe
    training_passes = _passes(recipe, context.data, (), 0)
    context = replace(context, progress=watch.part(title, training_passes))
    row = ReproductionRow(
        network.row.training,
        network.row.method,
        cell.seed,
        frozen(recipe.values()),
        _fingerprint(recipe, columns, len(images)),
        machine=machine_of(context),
    )
    try:
        training = train_cell(context, cell, cell.name)
        row = replace(
            row,
            cost=training.cost,
            parameters=training.parameters,
            validation_accuracy=training.validation_accuracy,
            weights=training.weights,
        )
        folder = context.run_folder(cell)
        net = load_classifier(folder, str(pick_device(context.device)))
        origin = Origin(
            str(folder), recipe.data, attacks.data_dir, "test", len(images), frozen(recipe.values())
        )
        conditions = Conditions(columns, (Linf(attacks.eps),), context.out)
        part = replace(watch, done=watch.done + training_passes)
        *_, found = rows_of(Subject(cell.name, net, images, origin), conditions, part)
        return replace(row, table=found)
    except UserError as error:
        return replace(row, failed=str(error))
