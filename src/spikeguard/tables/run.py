"""A table of networks by attacks: one network after another, the record after every cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from spikeguard.errors import UserError
from spikeguard.records.lock import locked
from spikeguard.records.tables import TableRecord, TableRow
from spikeguard.runtime.machine import machine
from spikeguard.tables.measure import Conditions, Subject, Watch, rows_of

RECORD_NAME = "table.json"


def tabulate(
    names: Sequence[str], find: Callable[[str], Subject], conditions: Conditions, watch: Watch
) -> TableRecord:
    """Every network under every column; ``find`` loads one by its name. The same call goes on where an
    earlier one stopped.

    UserError if two networks met different images, or if the folder is in use or holds another table;
    Interrupted after ``watch.stop``, with every finished cell kept.
    """
    path = conditions.folder / RECORD_NAME
    first = conditions.threats[0]
    record = TableRecord(
        first.norm,
        tuple(float(t.eps) for t in conditions.threats),
        tuple(conditions.columns),
        conditions.seed,
        conditions.batch_size,
        machine(),
    )
    with locked(conditions.folder):
        if path.exists():
            TableRecord.read(path)  # another record would be lost
        for number, name in enumerate(names):
            subject = find(name)
            each = conditions.passes(len(subject.images))
            here = replace(watch, done=number * each, total=len(names) * each)
            before = record.rows
            for row in rows_of(subject, conditions, here):
                record = replace(record, rows=(*before, row))
                _check_images(record.rows)
                record.write(path)
    return record


def _check_images(rows: Sequence[TableRow]) -> None:
    if rows[-1].images != rows[0].images:
        raise UserError(
            f"table: {rows[-1].network} and {rows[0].network} met different images: a table holds networks "
            "of the same ones only (name them with --data and --images)"
        )
