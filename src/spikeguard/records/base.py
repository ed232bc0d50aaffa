"""What all kinds of record share: a frozen dataclass that reads and writes itself as JSON.

``to_json`` and ``from_json`` use one builder (``records.build``); records of schema 1 are converted when they
are read (``records.schema1``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from spikeguard.errors import UserError
from spikeguard.records import schema1
from spikeguard.records.build import build
from spikeguard.records.files import SCHEMA, read_json, write_json
from spikeguard.records.plain import plain


def _of_schema1(values: Mapping[str, object], where: str) -> dict[str, object]:
    """The values in today's keys; UserError if a record of schema 1 is damaged."""
    try:
        return schema1.upgraded(values)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{where}: a damaged record of schema 1 ({said})") from error


@dataclass(frozen=True)
class Record:
    """Base of all records: reads and writes itself as JSON."""

    kind: ClassVar[str] = ""

    def to_json(self) -> dict[str, object]:
        """Plain values, with the schema's number and the kind of record."""
        return {"schema": SCHEMA, "kind": self.kind, **plain(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, object], where: str = "record") -> Self:
        """The record from plain values of this schema or of schema 1.

        Raises:
            UserError: another kind of record, a field that is unknown, missing or of another type.
        """
        values = _of_schema1(values, where)
        if values.get("kind") != cls.kind:
            raise UserError(f"{where}: a record of kind {values.get('kind')!r}, must be {cls.kind!r}")
        return build(cls, {k: v for k, v in values.items() if k not in ("schema", "kind")}, where)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record in a file; UserError if it is missing, damaged or of another kind."""
        return cls.from_json(read_json(path), str(path))

    def write(self, path: Path) -> None:
        """Write the record atomically."""
        write_json(path, self.to_json(), digest=True)
