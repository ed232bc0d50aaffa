"""What a record says of one network, and how to get it again: its recipe, its images, its numbers.

A record can be reproduced as far as it holds a recipe; all others are refused in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from spikeguard.auditing.member import Member
from spikeguard.data.images import Dataset, Images
from spikeguard.errors import UserError
from spikeguard.records.base import Record
from spikeguard.records.cells import CellRecord
from spikeguard.records.files import read_json
from spikeguard.records.reproduction import ReproductionRecord
from spikeguard.records.schema import AttackRecord, AuditRecord, Budget, SuiteId
from spikeguard.records.studies import DemoRecord
from spikeguard.records.tables import TableColumn, TableRecord
from spikeguard.records.training import TrainingRecord
from spikeguard.reproduce.claims import CLEAN, VALIDATION, Claim, audit_claims, row_claims
from spikeguard.sweep.cells import MORE, Cell
from spikeguard.sweep.run import SweepRecord, audited_images
from spikeguard.training.builder import training_parts
from spikeguard.training.recipe import Recipe
from spikeguard.training.recipes import recipe as named_recipe

Pick = Callable[[Dataset], Images]
"""From a data set to the images that the numbers are about."""


@dataclass(frozen=True)
class Source:
    """A network of a record: how it was trained and attacked, and what came out.

    ``budget``: None where nothing was attacked; ``extra``: members of its audit beside the suite; ``images``:
    digest of images and labels, where the record has it.
    """

    about: str
    cell: str
    recipe: Recipe
    claims: tuple[Claim, ...]
    pick: Pick
    budget: Budget | None = None
    seed: int = 0
    batch_size: int = 250
    extra: tuple[Member, ...] = ()
    data_dir: str | None = None
    weights: str | None = None
    images: str | None = None
    suite: SuiteId | None = None


def source_of(path: Path, cell: str | None) -> Source:
    """The network of a record, ``cell`` of it where it holds several.

    UserError: the record holds no recipe, or several networks and none of that name.
    """
    values, where = read_json(path), str(path)
    kind = values.get("kind")
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise UserError(f"{path}: a record of kind {kind!r} holds no recipe to train again (known: {known})")
    record = KINDS[str(kind)].from_json(values, where)
    if cell is not None and isinstance(record, (TrainingRecord, AttackRecord, AuditRecord, CellRecord)):
        raise UserError(f"{path}: a record of one network: leave out --cell")
    return _source(record, cell, where)


KINDS: dict[str, type[Record]] = {
    kind.kind: kind
    for kind in (
        TrainingRecord,
        AttackRecord,
        AuditRecord,
        TableRecord,
        SweepRecord,
        DemoRecord,
        CellRecord,
        ReproductionRecord,
    )
}
"""Kinds of record that hold recipes."""


def _source(record: Record, cell: str | None, where: str) -> Source:
    match record:
        case TrainingRecord():
            return _training(record, where)
        case AttackRecord():
            return _attack(record, where)
        case AuditRecord():
            return _audit(record, where)
        case TableRecord():
            return _table(record, cell, where)
        case SweepRecord():
            return _sweep(record, cell, where)
        case DemoRecord():
            return _demo(record, cell, where)
        case ReproductionRecord():
            return _reproduction(record, cell, where)
        case CellRecord():
            return _cifar(record, where)
    raise TypeError(f"{type(record).__name__} has no reader")


def _choose(cell: str | None, names: Sequence[str], where: str) -> str:
    """The chosen one of several networks."""
    if cell is None and len(names) == 1:
        return names[0]
    if cell is None or cell not in names:
        which = "names none" if cell is None else f"has no {cell!r}"
        raise UserError(f"{where}: --cell {which}; its networks: {'; '.join(names) or 'none'}")
    return cell


def _recipe(values: Mapping[str, object] | None, where: str) -> Recipe:
    if values is None:
        raise UserError(f"{where}: names no recipe (a network of your own): it cannot be trained again")
    return Recipe.of(values, where)


def _balanced(count: int) -> Pick:
    """Test images as the command line takes them: balanced, all of them if there are no more."""
    return lambda data: data.test if count >= len(data.test) else data.test.balanced(count)


def _numbered(index: Sequence[int]) -> Pick:
    """The test images of these numbers."""

    def pick(data: Dataset) -> Images:
        place = {number: row for row, number in enumerate(data.test.index.tolist())}
        if missing := [number for number in index if number not in place]:
            raise UserError(f"{data.name} has no test image number {missing[0]}")
        return data.test.select(torch.tensor([place[n] for n in index], device="cpu"))

    return pick


def _training(record: TrainingRecord, where: str) -> Source:
    if record.validation_accuracy is None:
        raise UserError(f"{where}: no accuracy to compare with: the training had no validation images")
    recipe = _recipe(record.recipe, where)
    claims = (Claim(VALIDATION, record.validation_accuracy),)
    return Source(
        record.kind,
        recipe.name,
        recipe,
        claims,
        lambda data: training_parts(recipe, data)[1],
        weights=record.weights,
    )


def _attack(record: AttackRecord, where: str) -> Source:
    settings = dict(record.settings)
    eot = settings.get("eot")
    name = " ".join([record.attack, *(f"{k}={v}" for k, v in settings.items() if v is not None)])
    column = TableColumn(name, record.attack, settings, eot if isinstance(eot, int) else 1)
    claims = (Claim(CLEAN, record.clean), Claim(name, record.worst_case, column))
    return _with_origin(record, claims, where)


def _audit(record: AuditRecord, where: str) -> Source:
    if record.merged_from:
        raise UserError(f"{where}: a union of audits: reproduce one of its parts")
    claims = audit_claims(record.suite.effort, record.clean, record.worst_case, record.masking)
    return _with_origin(record, claims, where)


def _with_origin(record: AttackRecord | AuditRecord, claims: tuple[Claim, ...], where: str) -> Source:
    origin = record.origin
    recipe = _recipe(origin.recipe, where)
    if origin.split not in (None, "test"):
        raise UserError(f"{where}: about {origin.split!r} images; only 'test' can be picked again")
    pick = _numbered(record.index) if record.index else _balanced(record.images)
    return Source(
        record.kind,
        origin.target or recipe.name,
        recipe,
        claims,
        pick,
        record.threat,
        record.seed or 0,
        record.batch_size or 250,
        data_dir=origin.data_dir,
        images=record.digests.images if record.digests else None,
        suite=record.suite if isinstance(record, AuditRecord) else None,
    )


def _table(record: TableRecord, cell: str | None, where: str) -> Source:
    chosen = _choose(cell, [row.network for row in record.rows], where)
    row = next(row for row in record.rows if row.network == chosen)
    eps = record.eps[-1]  # one budget is enough to see whether the network is the same
    return Source(
        record.kind,
        chosen,
        _recipe(row.origin.recipe, f"{where}: {chosen}"),
        row_claims(row, record.columns, eps),
        _balanced(row.clean.n),
        Budget(record.norm, eps),
        record.seed,
        record.batch_size,
        data_dir=row.origin.data_dir,
    )


def _reproduction(record: ReproductionRecord, cell: str | None, where: str) -> Source:
    rows = {f"{row.row} {row.seed}": row for row in record.rows if row.table is not None}
    wanted = cell if cell in rows else next((name for name in rows if name.rpartition(" ")[0] == cell), cell)
    chosen = rows[_choose(wanted, list(rows), where)]
    assert chosen.table is not None
    others = [r.table for r in record.row(chosen.row) if r.seed != chosen.seed and r.table is not None]
    return Source(
        record.kind,
        f"{chosen.row} {chosen.seed}",
        _recipe(chosen.recipe, where),
        row_claims(chosen.table, record.columns, record.eps, others),
        _balanced(record.images),
        Budget("linf", record.eps),
        data_dir=chosen.table.origin.data_dir,
        weights=chosen.weights,
    )


def _sweep(record: SweepRecord, cell: str | None, where: str) -> Source:
    cells = {name: row for name, row in record.cells.items() if row.audit is not None}
    wanted = cell if cell in cells else next((n for n, row in cells.items() if row.row == cell), cell)
    row = cells[_choose(wanted, list(cells), where)]
    assert row.audit is not None
    settings, audit = record.settings, row.audit
    recipe = _recipe({**record.recipes[row.row], "seed": row.seed}, where)
    others = [c.audit for c in cells.values() if c.row == row.row and c.seed != row.seed and c.audit]
    return Source(
        record.kind,
        f"{row.row} {row.seed}",
        recipe,
        audit_claims(settings.effort, audit.clean, audit.worst_case, audit.masking, others),
        lambda data: audited_images(settings, Cell("", row.row, row.seed, recipe), data),
        Budget(settings.norm, settings.eps),
        suite=audit.suite,
    )


def _demo(record: DemoRecord, cell: str | None, where: str) -> Source:
    if not record.finished:
        raise UserError(f"{where}: an unfinished demo: go on with spikeguard demo --resume")
    chosen = _choose(cell, [network.role for network in record.networks], where)
    network = next(n for n in record.networks if n.role == chosen)
    base = named_recipe("vanilla" if chosen == "control" else chosen)
    options = base.options if network.factor == 1.0 else {**base.options, "gain": network.factor}
    audit = network.attacks[record.eps[0]]
    return Source(
        record.kind,
        chosen,
        replace(base, options=options, seed=record.settings.seed, epochs=record.settings.epochs),
        audit_claims(audit.suite.effort, audit.clean, audit.worst_case, audit.masking),
        _balanced(record.images),
        audit.threat,
        record.settings.seed,
        suite=audit.suite,
    )


def _cifar(record: CellRecord, where: str) -> Source:
    if record.audit is None:
        raise UserError(f"{where}: no audit to compare with ({record.failed})")
    if record.eps is None:
        raise UserError(f"{where}: does not name the budget of its audit (a record of version 0.2 or before)")
    recipe, count = _recipe(record.recipe, where), record.audit.clean.n

    def pick(data: Dataset) -> Images:
        held = training_parts(recipe, data)[1]
        return held.select(torch.arange(len(held) - count, len(held), device="cpu"))

    audit = record.audit
    return Source(
        record.kind,
        record.name,
        recipe,
        audit_claims(audit.suite.effort, audit.clean, audit.worst_case, audit.masking),
        pick,
        Budget("linf", record.eps),
        extra=MORE,
        suite=audit.suite,
    )
