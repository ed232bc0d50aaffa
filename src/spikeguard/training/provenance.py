"""Which parts of a training come from plugins, so that a network without them is refused by their name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from spikeguard.data.sources import DATA
from spikeguard.defenses import DEFENSES
from spikeguard.errors import UserError
from spikeguard.networks import NETWORKS
from spikeguard.records.build import table
from spikeguard.registry import Registry
from spikeguard.training.recipe import Recipe
from spikeguard.training.settings import SURROGATES

NEEDED: dict[str, Registry[object]] = {r.kind: r for r in (SURROGATES, DEFENSES, NETWORKS)}  # type: ignore[misc]
"""Kinds without which a network cannot be built; its data set is not among them."""


def origins(recipe: Recipe) -> dict[str, str]:
    """Package, or module, of everything registered that the recipe uses, by kind and name."""
    used = {type(value) for value in _parts(recipe)}
    found: dict[str, str] = {}
    for registry in (SURROGATES, DEFENSES):
        found |= {
            f"{registry.kind} {name}": registry.sources[name]
            for name, kind in registry.added.items()
            if kind in used
        }
    for named, name in ((NETWORKS, recipe.network), (DATA, recipe.data)):
        if name in named.added:
            found[f"{named.kind} {name}"] = named.sources[name]
    return found


def _parts(value: object) -> Iterator[object]:
    """A value, its fields, the items of these, and so on."""
    yield value
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _parts(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name))


def check_installed(stored: object, where: str) -> None:
    """UserError that names the plugin if a part of a network, as ``origins`` stored it, is not here."""
    for part, origin in table({} if stored is None else stored, f"{where}: plugins").items():
        kind, _, name = part.partition(" ")
        if kind in NEEDED and name not in NEEDED[kind]:
            do = "import it first" if str(origin).startswith("module ") else "install it"
            raise UserError(f"{where} needs the {kind} {name!r} of {origin}, which is not registered: {do}")


def needs(recipe: Recipe) -> Mapping[str, object]:
    """What is stored beside the recipe: nothing where all is the package's own."""
    found = origins(recipe)
    return {"plugins": found} if found else {}
