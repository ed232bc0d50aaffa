"""Things by name: the package's own, and those that users and plugins register.

A plugin is a package that names a module under the entry point group ``spikeguard.plugins``. It is imported
when a name is looked up that is not the package's own, or when names are listed; never before.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from threading import RLock
from typing import TypeVar

from spikeguard.arguments import error_line
from spikeguard.errors import SpikeguardWarning, UserError

GROUP = "spikeguard.plugins"
T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class Plugins:
    """Imports plugins once a process; ``loading`` is the one at work, which registers things."""

    def __init__(self) -> None:
        self.lock, self.begun, self.done = RLock(), False, False
        self.loading: str | None = None

    def load(self) -> None:
        """Import what is installed; a plugin that fails is left out with a warning that names it."""
        if self.done:
            return
        with self.lock:
            if self.begun:  # by this thread: a plugin looks up a name
                return
            self.begun = True
            for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
                self._load(entry)
            self.done = True

    def _load(self, entry: EntryPoint) -> None:
        self.loading = _package(entry)
        try:
            entry.load()
        except Exception as error:  # whatever the code of others raises
            text = f"plugin {entry.name!r} of {self.loading} is left out: {error_line(error)}"
            warnings.warn(text, SpikeguardWarning, stacklevel=2)
        finally:
            self.loading = None


def _package(entry: EntryPoint) -> str:
    """Name and version of the package that an entry point belongs to."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


plugins = Plugins()


class Registry(Mapping[str, T]):
    """Names of one kind of thing; ``own``: those of the package, ``added``: those registered since.

    ``sources``: who registered them, a plugin's package and version or a module.
    """

    def __init__(self, kind: str, own: Mapping[str, T]) -> None:
        self.kind, self.own = kind, own
        self.added: dict[str, T] = {}
        self.things: dict[str, object] = {}
        self.sources: dict[str, str] = {}

    def __getitem__(self, name: str) -> T:
        if name in self.own:
            return self.own[name]
        if name not in self.added:
            plugins.load()
        return self.added[name]

    def __iter__(self) -> Iterator[str]:
        plugins.load()
        return iter((*self.own, *self.added))

    def __len__(self) -> int:
        plugins.load()
        return len(self.own) + len(self.added)

    def add(self, name: str, value: T, thing: object) -> None:
        """Register the value that stands for a user's thing.

        The same thing again, or defined again, takes its own place. UserError if the name is taken by
        another one, or no word.
        """
        if not _NAME.fullmatch(name):
            raise UserError(f"register: name = {name!r} must be letters, digits and _, a letter first")
        if name in self.own or (name in self.added and not _same(self.things[name], thing)):
            raise UserError(
                f"register: there is a {self.kind} {name!r} of {self.sources.get(name, 'spikeguard')}; give "
                "another name="
            )
        self.added[name], self.things[name] = value, thing
        self.sources[name] = plugins.loading or f"module {getattr(thing, '__module__', '__main__')}"


def _same(one: object, other: object) -> bool:
    """Is it the same object, or a class or function that is defined once more at the same place?"""
    places = [(getattr(t, "__module__", None), getattr(t, "__qualname__", None)) for t in (one, other)]
    named = places[0][1] is not None and "<lambda>" not in str(places[0][1])
    return one is other or (named and places[0] == places[1])
