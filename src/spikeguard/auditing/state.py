"""What an audit has found so far: enough to resume it to the same result."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikeguard.errors import UserError
from spikeguard.records.files import write_bytes
from spikeguard.records.schema import MeanLogits

ROBUST, CLEAN_WRONG = -1, -2
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

    TENSORS = ("found", "clean", "right", "margin", "first_by", "second_by", "by_family")
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
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as held:
                notes = json.loads(held["notes"].tobytes().decode())
                tensors = {k: torch.from_numpy(held[k].copy()).to(device) for k in State.TENSORS}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} holds no audit to resume ({error})") from error
        before: Conditions = notes.pop("conditions")
        if differs := sorted(k for k in {*before, *conditions} if before.get(k) != conditions.get(k)):
            name = differs[0]
            raise UserError(
                f"{path} belongs to an audit with {name} = {before.get(name)!r}, not "
                f"{conditions.get(name)!r}: choose another folder"
            )
        notes["done"] = tuple(notes["done"])
        return State(**tensors, **notes)


def digest(*tensors: Tensor) -> str:
    """The first 16 digits of a hash of values and shapes."""
    total = hashlib.sha256()
    for t in tensors:
        total.update(str((tuple(t.shape), t.dtype)).encode())
        total.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]
