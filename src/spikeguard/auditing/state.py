"""What an audit has found so far: enough to resume it to the same result."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from spikeguard.errors import UserError
from spikeguard.records.arrays import FLOATING, read_arrays
from spikeguard.records.build import build, table
from spikeguard.records.files import write_bytes
from spikeguard.records.plain import plain
from spikeguard.records.schema import MeanLogits

ROBUST, CLEAN_WRONG = -1, -2


@dataclass(frozen=True)
class _Notes:
    """The numbers of a state, as its file holds them."""

    conditions: dict[str, object]
    done: tuple[int, int]
    broken: dict[str, int]
    attempted: dict[str, int]
    unconfirmed: dict[str, int]
    alone: dict[str, float]
    after: dict[str, float]
    steps: dict[str, tuple[int, ...]]
    failed: dict[str, str]
    cost: dict[str, dict[str, float]]
    earlier: float


Conditions = dict[str, object]
"""What a stored state depends on, as JSON values."""


@dataclass
class State:
    """Per sample: ``found``, the input that breaks it, else the one of highest margin; ``right``, the share
    of draws that are right there; ``first_by`` and ``second_by``, the member that broke it first and the
    first one of another family (ROBUST: none, CLEAN_WRONG: wrong without attack).

    ``by_family`` ``[F, N]``: the same share at the worst input of each family. By member id: ``attempted``
    samples, ``broken`` ones, ``unconfirmed`` successes, ``alone`` (accuracy, if it attacked all samples),
    ``after`` (accuracy left), ``steps`` (samples broken at each step), ``failed`` (why), ``cost``. ``done``:
    position (member, chunk) to resume from; ``earlier``: seconds of earlier sessions.
    """

    found: Tensor
    clean: Tensor
    right: Tensor
    margin: Tensor
    first_by: Tensor
    second_by: Tensor
    by_family: Tensor
    done: tuple[int, int] = (0, 0)
    broken: dict[str, int] = field(default_factory=dict)
    attempted: dict[str, int] = field(default_factory=dict)
    unconfirmed: dict[str, int] = field(default_factory=dict)
    alone: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    steps: dict[str, list[int]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    cost: dict[str, dict[str, float]] = field(default_factory=dict)
    earlier: float = 0.0
    mean_logits: MeanLogits | None = None

    @staticmethod
    def start(x: Tensor, clean: Tensor, margin: Tensor, families: int) -> State:
        """The state before any attack."""
        first = torch.where(clean > 0, ROBUST, CLEAN_WRONG)
        return State(
            x.clone(), clean, clean.clone(), margin, first, first.clone(), clean.expand(families, -1).clone()
        )

    TENSORS: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("found", "clean", "right", "margin"), FLOATING),
        **dict.fromkeys(("first_by", "second_by"), "int64"),
        "by_family": FLOATING,
    }
    NOTES = ("done", "broken", "attempted", "unconfirmed", "alone", "after", "steps", "failed", "cost")

    def save(self, path: Path, conditions: Conditions, seconds: float = 0.0) -> None:
        """Write everything atomically; ``conditions`` are compared when it is read.

        ``seconds``: what this session took so far.
        """
        notes = json.dumps(
            {
                "conditions": conditions,
                "earlier": self.earlier + seconds,
                **{k: getattr(self, k) for k in self.NOTES},
            }
        )
        buffer = io.BytesIO()
        np.savez(
            buffer,
            notes=np.frombuffer(notes.encode(), np.uint8),
            **{k: getattr(self, k).cpu().numpy() for k in self.TENSORS},
        )
        write_bytes(path, buffer.getvalue())

    @staticmethod
    def load(path: Path, conditions: Conditions, device: torch.device) -> State:
        """Read it back; UserError if it is damaged or belongs to another audit, naming what differs."""
        held = read_arrays(path, {"notes": "uint8", **State.TENSORS}, "audit to resume")
        try:
            notes = build(_Notes, table(json.loads(held.pop("notes").tobytes()), "notes"), "notes")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} holds no audit to resume ({error})") from error
        found, clean, right, margin, first, second, by_family = (
            torch.from_numpy(held[k]).to(device) for k in State.TENSORS
        )
        before = plain(notes.conditions)
        if differs := sorted(k for k in {*before, *conditions} if before.get(k) != conditions.get(k)):
            name = differs[0]
            raise UserError(
                f"{path} belongs to an audit with {name} = {before.get(name)!r}, not "
                f"{conditions.get(name)!r}: choose another folder"
            )
        state = State(found, clean, right, margin, first, second, by_family, earlier=notes.earlier)
        for name in State.NOTES:
            setattr(state, name, getattr(notes, name))
        state.steps = {k: list(v) for k, v in notes.steps.items()}
        if problem := state._problem():
            raise UserError(f"{path} holds no audit to resume ({problem})")
        return state

    def _problem(self) -> str:
        """What cannot be in a state that was read, '' if nothing."""
        n = self.first_by.shape
        shapes = (self.clean.shape, self.right.shape, self.margin.shape, self.second_by.shape)
        if len(n) != 1 or any(shape != n for shape in shapes) or self.found.shape[:1] != n:
            return "its arrays are about different numbers of images"
        if self.by_family.dim() != 2 or self.by_family.shape[1:] != n:
            return "by_family is not about its images"
        for name in ("clean", "right", "by_family", "found"):
            values = getattr(self, name)
            if not bool(((values >= 0) & (values <= 1)).all()):
                return f"{name} holds numbers outside [0, 1]"
        for name in ("first_by", "second_by"):
            if int(getattr(self, name).amin()) < CLEAN_WRONG:
                return f"{name} names a member below {CLEAN_WRONG}"
        if min(self.done) < 0 or min([*self.broken.values(), *self.attempted.values()], default=0) < 0:
            return "a count is below 0"
        return ""

    def check_fits(self, x: Tensor, families: int, members: int, path: Path) -> None:
        """UserError unless the state is about images like ``x`` and so many families and members."""
        highest = max(int(self.first_by.amax()), int(self.second_by.amax()))
        if self.found.shape != x.shape or len(self.by_family) != families or highest >= members:
            raise UserError(
                f"{path} holds no audit to resume (its arrays do not fit the images or the members)"
            )


def digest(*tensors: Tensor) -> str:
    """The first 16 digits of a hash of values and shapes."""
    total = hashlib.sha256()
    for t in tensors:
        total.update(str((tuple(t.shape), t.dtype)).encode())
        total.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]
