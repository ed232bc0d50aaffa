"""Networks that come with the package: ``sg.load("embedded-robust")``, ``spikeguard audit embedded-robust``.

Each has a folder here with its weights, the records of its training and of its audit with witnesses, and a
card. ``index.json`` names them and the digest of their weights. ``tools/zoo_page.py`` adds one; docs/zoo.md
lists them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from spikeguard.errors import UserError, unknown
from spikeguard.records.build import build, table

FOLDER = Path(__file__).parent
INDEX = FOLDER / "index.json"
WEIGHTS, TRAINING, AUDIT, CARD = "weights.safetensors", "run.json", "audit.json", "card.md"


@dataclass(frozen=True)
class Entry:
    """A network of the zoo: what it is for, and the SHA-256 of its file of weights."""

    about: str
    sha256: str


@cache
def entries() -> dict[str, Entry]:
    """All networks of the zoo by name.

    >>> from spikeguard.zoo import entries
    >>> "embedded-robust" in entries()
    True
    """
    listed = json.loads(INDEX.read_text())
    return {name: build(Entry, table(row, name), f"{INDEX}: {name}") for name, row in listed.items()}


def folder(name: str) -> Path:
    """The folder of a network; UserError if there is none of that name, or if its weights are damaged."""
    if name not in entries():
        raise unknown("network of the zoo", name, entries())
    path = FOLDER / name
    found = hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()
    if found != entries()[name].sha256:
        raise UserError(f"{path / WEIGHTS} is damaged: install spikeguard again")
    return path


def card(name: str) -> str:
    """The card of a network: what it is, how it was made, what its audit found."""
    return (folder(name) / CARD).read_text()
