"""Witnesses: the inputs that break samples, kept so that anyone can check a result with one forward pass.

A witness is stored on a grid of 1/65535 and projected into the budget when it is read; a sample whose class
depends on finer digits is stored exactly. What counts is the input as it is read back, in float32, on the
untouched model, at another batch size.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from spikeguard.errors import UserError
from spikeguard.models import Model, eval_mode, logits_of
from spikeguard.networks.classifier import Classifier
from spikeguard.records.files import write_bytes
from spikeguard.threat import Threat


def check_batch(count: int, unlike: int) -> int:
    """A batch size for re-checking ``count`` samples that is not ``unlike``, the attack's."""
    return next((b for b in (97, 89, 61, 37, 11, 3, 2) if b < count and b != unlike), 1)


def misclassified(model: Model, x: Tensor, y: Tensor, unlike: int = 0) -> Tensor:
    """Inputs that the untouched model gets wrong in float32, at a batch size that is not ``unlike``"""
    if isinstance(model, nn.Module) and any(getattr(m, "requests", None) for m in model.modules()):
        raise UserError("witnesses are checked on the untouched model: close the open tap first")
    if not len(x):
        return torch.zeros(0, dtype=torch.bool, device=x.device)
    size = check_batch(len(x), unlike)
    with eval_mode(model), in_float32(model), torch.no_grad():
        wrong = [
            logits_of(model, a.float()).argmax(1) != b
            for a, b in zip(x.split(size), y.split(size), strict=True)
        ]
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

    def read(self, x: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
        """Rows ``[n]`` and inputs ``[n, ...]``, for the attacked images ``x`` under the same threat."""
        near = x[self.rows]
        held = threat.select(self.rows).project(self.grid.to(near) / 65535.0, near)
        return torch.cat([self.rows, self.exact_rows]).to(x.device), torch.cat([held, self.exact.to(held)])

    def of(self, rows: set[int]) -> Witnesses:
        """The witnesses of these rows only."""
        near, finer = (
            torch.tensor([int(r) in rows for r in held], dtype=torch.bool)
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

    def save(self, path: Path) -> str:
        """Write them compressed; returns the file's sha256."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            rows=self.rows.numpy(),
            grid=self.grid.numpy().astype(np.uint16),
            exact_rows=self.exact_rows.numpy(),
            exact=self.exact.numpy(),
        )
        write_bytes(path, buffer.getvalue())
        return hashlib.sha256(buffer.getvalue()).hexdigest()

    @staticmethod
    def load(path: Path) -> Witnesses:
        """Read them back; UserError if the file is missing or damaged."""
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as held:
                parts = {
                    k: torch.from_numpy(held[k].astype(np.int32) if k == "grid" else held[k])
                    for k in held.files
                }
            return Witnesses(parts["rows"], parts["grid"], parts["exact_rows"], parts["exact"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} holds no witnesses ({error})") from error


def candidates(found: Tensor) -> Witnesses:
    """One input for every image, on the grid: what a random model is scored at."""
    rows = torch.arange(len(found))
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
    finer = finer[misclassified(model, found[finer], y[finer], unlike)]
    kept = Witnesses(rows[held].cpu(), grid[held].cpu(), finer.cpu(), found[finer].float().cpu())
    confirmed = torch.zeros_like(broken)
    confirmed[rows[held]] = True
    confirmed[finer] = True
    return kept, confirmed
