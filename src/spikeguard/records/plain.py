"""Records as JSON values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args, overload

from spikeguard.records.build import BITS, hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


@overload
def plain(value: DataclassInstance | Mapping[str, object]) -> dict[str, Json]: ...
@overload
def plain(value: object) -> Json: ...
def plain(value: object) -> Json:
    """JSON values of a record: dataclasses as objects without their empty optional fields, tuples as lists,
    outcomes as strings of 0 and 1, None for numbers that are not finite."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        types = hints(type(value))
        return {
            f.name: _bits(held) if BITS in get_args(types[f.name])[1:] else plain(held)
            for f in dataclasses.fields(value)
            if not _is_empty(f, held := getattr(value, f.name))
        }
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} has no place in a record")


def _is_empty(field: dataclasses.Field[object], value: object) -> bool:
    optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    return optional and (value is None or value in ((), {}, ""))


def _bits(values: Sequence[float]) -> Json:
    if all(v in (0.0, 1.0) for v in values):
        return "".join("1" if v else "0" for v in values)
    return list(values)
