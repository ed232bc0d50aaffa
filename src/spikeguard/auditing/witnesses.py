"""Witnesses: the inputs that break samples, kept so that anyone can check a result with one forward pass.

A witness is stored on a grid of 1/65535 and projected into the budget when it is read; a sample whose class
depends on finer digits is stored exactly. What counts is the input as it is read back, in float32, on the
untouched model, at another batch size.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from spikeguard.errors import UserError
from spikeguard.models import Model, eval_mode, is_wrong, logits_of
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import spiking
from spikeguard.records.arrays import Array, read_arrays
from spikeguard.records.files import write_bytes
from spikeguard.records.schema import WitnessFile
from spikeguard.threat import Threat


def check_batch(count: int, unlike: int) -> int:
    """A batch size for re-checking ``count`` samples that is not ``unlike``, the attack's."""
    return next((b for b in (97, 89, 61, 37, 11, 3, 2) if b < count and b != unlike), 1)


def misclassified(model: Model, x: Tensor, y: Tensor, unlike: int = 0) -> Tensor:
    """Inputs that the untouched model gets wrong in float32, at a batch size that is not ``unlike``"""
    if isinstance(model, nn.Module) and any(
        request.when is None for layer in spiking(model).values() for request in layer.requests
    ):
        raise UserError("witnesses are checked on the untouched model: close the open tap first")
    if not len(x):
        return torch.zeros(0, dtype=torch.bool, device=x.device)
    size = check_batch(len(x), unlike)
    with eval_mode(model), in_float32(model), torch.no_grad():
        wrong = [is_wrong(logits_of(model, a), b) for a, b in zip(x.split(size), y.split(size), strict=True)]
    return torch.cat(wrong)


@contextmanager
def in_float32(model: Model) -> Iterator[None]:
    """Run a network of this library without autocast."""
    if not isinstance(model, Classifier):
        yield
        return
    before, model.autocast = model.autocast, None
    try:
        yield
    finally:
        model.autocast = before


NO_NOTE: Mapping[str, str] = {}


def witness_file(folder: Path, beside: WitnessFile) -> Path:
    """The file of witnesses in the folder of its record; UserError if the record names another place."""
    if beside.file != Path(beside.file).name:
        raise UserError(f"the record names witnesses at {beside.file!r}; they must lie beside it")
    return folder / beside.file


@dataclass(frozen=True)
class Witnesses:
    """Stored inputs: ``rows`` of the attacked set, their values on the grid, and exact ones where needed.

    >>> result = sg.audit(net, x, y, sg.Linf(8 / 255), effort="quick")
    >>> rows, inputs = result.witnesses.read(x, sg.Linf(8 / 255))
    >>> bool(((inputs - x[rows]).abs() <= 8 / 255 + 1e-6).all())
    True
    """

    rows: Tensor
    grid: Tensor
    exact_rows: Tensor
    exact: Tensor

    def __repr__(self) -> str:
        count, exact = len(self.rows) + len(self.exact_rows), len(self.exact_rows)
        return f"Witnesses({count} inputs of shape {list(self.grid.shape[1:])}, {exact} of them exact)"

    def read(self, x: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
        """Rows ``[n]`` and inputs ``[n, ...]``, for the attacked images ``x`` under the same threat."""
        if self.grid.shape[1:] != x.shape[1:] and len(self.rows) + len(self.exact_rows):
            raise UserError(
                f"the witnesses are images of shape {tuple(self.grid.shape[1:])}, the attacked ones of "
                f"{tuple(x.shape[1:])}"
            )
        if max([*self.rows.tolist(), *self.exact_rows.tolist()], default=-1) >= len(x):
            raise UserError(f"the witnesses name images beyond the {len(x)} attacked ones")
        near = x[self.rows]
        held = threat.select(self.rows).project(self.grid.to(near) / 65535.0, near)
        return torch.cat([self.rows, self.exact_rows]).to(x.device), torch.cat([held, self.exact.to(held)])

    def of(self, rows: set[int]) -> Witnesses:
        """The witnesses of these rows only."""
        near, finer = (
            torch.tensor([int(r) in rows for r in held], dtype=torch.bool, device="cpu")
            for held in (self.rows, self.exact_rows)
        )
        return Witnesses(self.rows[near], self.grid[near], self.exact_rows[finer], self.exact[finer])

    @staticmethod
    def joined(parts: Sequence[Witnesses]) -> Witnesses:
        """All witnesses of several sets."""
        rows, exact_rows = (torch.cat([getattr(p, name) for p in parts]) for name in ("rows", "exact_rows"))
        near, finer = rows.argsort(), exact_rows.argsort()
        grid, exact = (torch.cat([getattr(p, name) for p in parts]) for name in ("grid", "exact"))
        return Witnesses(rows[near], grid[near], exact_rows[finer], exact[finer])

    def save(self, path: Path, note: Mapping[str, str] = NO_NOTE) -> str:
        """Write them compressed, with texts beside them; returns the file's sha256."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            rows=self.rows.numpy(),
            grid=self.grid.numpy().astype(np.uint16),
            exact_rows=self.exact_rows.numpy(),
            exact=self.exact.numpy(),
        )
        if note:
            with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as file:
                for name, text in note.items():
                    file.writestr(name, text)
        write_bytes(path, buffer.getvalue())
        return hashlib.sha256(buffer.getvalue()).hexdigest()

    @staticmethod
    def load(path: Path, count: int | None = None) -> Witnesses:
        """Read them back. ``count``: images of the attacked set, if it is known.

        UserError if the file is missing, damaged, or holds what witnesses cannot be: rows outside the set,
        twice or unsorted, another dtype, inputs of another number or shape.
        """
        held = read_arrays(path, KINDS, "witnesses")
        if problem := _problem(held, count):
            raise UserError(f"{path} holds no witnesses ({problem})")
        rows, grid, exact_rows, exact = (held[name] for name in KINDS)
        return Witnesses(
            torch.from_numpy(rows),
            torch.from_numpy(grid.astype(np.int32)),
            torch.from_numpy(exact_rows),
            torch.from_numpy(exact),
        )


KINDS = {"rows": "int64", "grid": "uint16", "exact_rows": "int64", "exact": "float32"}
"""The arrays of a file of witnesses."""


def _problem(held: Mapping[str, Array], count: int | None) -> str:
    """What is wrong with the arrays of a file of witnesses, '' if nothing is."""
    rows, exact_rows = held["rows"], held["exact_rows"]
    for name, numbers, inputs in (("rows", rows, "grid"), ("exact_rows", exact_rows, "exact")):
        if numbers.ndim != 1 or held[inputs].ndim < 1 or len(held[inputs]) != len(numbers):
            return f"{name} and {inputs} differ in length"
        if not all(a < b for a, b in pairwise(numbers.tolist())):
            return f"{name} is not sorted, or names an image twice"
    if held["grid"].shape[1:] != held["exact"].shape[1:]:
        return "grid and exact differ in the shape of an image"
    both = [*rows.tolist(), *exact_rows.tolist()]
    if len(set(both)) < len(both):
        return "an image has two witnesses"
    if both and (min(both) < 0 or (count is not None and max(both) >= count)):
        return f"rows outside the {count} images" if count is not None else "a row below 0"
    exact = held["exact"].astype(np.float32)
    if not (np.isfinite(exact).all() and (exact >= 0).all() and (exact <= 1).all()):
        return "exact holds what is no pixel in [0, 1]"
    return ""


def candidates(found: Tensor) -> Witnesses:
    """One input for every image, on the grid: what a random model is scored at."""
    rows = torch.arange(len(found), device="cpu")
    return Witnesses(rows, _on_grid(found).cpu(), rows[:0], found[:0].float().cpu())


def _on_grid(found: Tensor) -> Tensor:
    return (found.double() * 65535.0).round().to(torch.int32)


def keep(
    model: Model, x: Tensor, y: Tensor, found: Tensor, broken: Tensor, threat: Threat, unlike: int = 0
) -> tuple[Witnesses, Tensor]:
    """Store those of ``found`` that claim to break their sample and do so when checked again.

    Also returns which samples these are, ``[N]`` bool.
    """
    rows = torch.nonzero(broken).flatten()
    grid = _on_grid(found[rows])
    stored = Witnesses(rows, grid, rows[:0], found[rows[:0]])
    held = misclassified(model, stored.read(x, threat)[1], y[rows], unlike)
    finer = rows[~held]
    as_stored = found[finer].float().to(found)
    finer = finer[misclassified(model, as_stored, y[finer], unlike)]
    kept = Witnesses(rows[held].cpu(), grid[held].cpu(), finer.cpu(), found[finer].float().cpu())
    confirmed = torch.zeros_like(broken)
    confirmed[rows[held]] = True
    confirmed[finer] = True
    return kept, confirmed
