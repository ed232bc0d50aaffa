"""The paper's experiments, read from ``paper.toml``: published numbers, a recipe for every row and scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, reduce
from pathlib import Path

from spikeguard.auditing.suite import Effort
from spikeguard.errors import UserError, unknown
from spikeguard.neurons import Neuron
from spikeguard.records.build import build
from spikeguard.records.reproduction import NotReproduced
from spikeguard.records.tables import TableColumn
from spikeguard.surrogates import Triangle
from spikeguard.sweep.matrix import merged
from spikeguard.tables.columns import column
from spikeguard.training.recipe import Recipe, read_toml

FILE = Path(__file__).with_name("paper.toml")
Values = dict[str, object]
SUBSTRATE = Recipe(neuron=Neuron(decay=1.0, surrogate=Triangle(1.0)))
"""What all rows share: the neurons of the literature on robust spiking networks."""
FULL = "paper"
"""The scale that others deviate from."""


@dataclass(frozen=True)
class PaperRow:
    """A row of a table of the paper: its regime, what is added to it, accuracies in % by column."""

    training: str
    method: str
    published: dict[str, float]

    @property
    def name(self) -> str:
        """The row's name on pages."""
        return self.training if self.method == "none" else f"{self.training} + {self.method}"


@dataclass(frozen=True)
class Scale:
    """How large an experiment is run: fields of all its recipes, test images, effort of the audit."""

    what: str
    images: int
    effort: Effort
    recipe: Values


@dataclass(frozen=True)
class Experiment:
    """A table of the paper. ``recipe``, ``guard``: fields of recipes, and of TGO, by scale."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    guard: dict[str, Values]
    recipe: dict[str, Values] = field(default_factory=dict)
    not_reproduced: tuple[NotReproduced, ...] = ()


@dataclass(frozen=True)
class Paper:
    """All of the file. ``assumed``: what the paper leaves open and how it is settled here."""

    source: str
    numbers: str
    eps: str
    step_size: float
    assumed: tuple[str, ...]
    training: dict[str, Values]
    method: dict[str, Values]
    scales: dict[str, Scale]
    experiments: dict[str, Experiment]
    not_reproduced: tuple[NotReproduced, ...] = ()

    @property
    def budget(self) -> float:
        """The budget of all attacks, under Linf."""
        return float(Fraction(self.eps))

    def experiment(self, name: str) -> Experiment:
        """The experiment of that name; UserError lists the known ones."""
        if name not in self.experiments:
            raise unknown("experiment", name, self.experiments, "reproduce: ")
        return self.experiments[name]

    def scale(self, name: str) -> Scale:
        """The scale of that name; UserError lists the known ones."""
        if name not in self.scales:
            raise unknown("scale", name, self.scales, "reproduce: ")
        return self.scales[name]

    def columns(self, experiment: str, scale: str) -> tuple[TableColumn, ...]:
        """The paper's attacks, then the audit."""
        words = self.experiment(experiment).columns
        return (*map(self._attack, words), column(self.scale(scale).effort))

    def _attack(self, word: str) -> TableColumn:
        found = column(word)
        if found.attack != "pgd":
            return found
        return TableColumn(
            found.name, found.attack, {**found.settings, "step_size": self.step_size}, found.eot
        )

    def recipe(self, experiment: str, scale: str, row: PaperRow, seed: int) -> Recipe:
        """How a row is trained at a scale."""
        chosen = self.experiment(experiment)
        if row.training not in self.training or row.method not in self.method:
            raise UserError(f"{FILE.name}: {row.name}: no such regime or method")
        added = self.method[row.method]
        guard: Values = {"defenses": {"tgo": chosen.guard[scale]}} if "tgo" in _defenses(added) else {}
        layers = (
            self.scale(scale).recipe,
            chosen.recipe.get(scale, {}),
            self.training[row.training],
            guard,
            added,
        )
        values = reduce(merged, layers, SUBSTRATE.values())
        return Recipe.of(
            {**values, "name": f"{experiment} {scale} {row.name}", "seed": seed}, f"{FILE.name}: {row.name}"
        )

    def deviations(self, experiment: str, scale: str) -> tuple[str, ...]:
        """The fields in which a scale's recipes differ from those of the full one, a line each."""
        rows = [
            row for row in self.experiment(experiment).rows if "tgo" in _defenses(self.method[row.method])
        ]
        here, there = (dict(_flat(self.recipe(experiment, s, rows[-1], 0).values())) for s in (scale, FULL))
        names = [name for name in {**there, **here} if name not in ("name", "options")]
        return tuple(
            f"{name} = {_shown(name, here)} instead of {_shown(name, there)}"
            for name in names
            if here.get(name) != there.get(name)
        )


def _shown(name: str, values: Mapping[str, object]) -> str:
    """A field's value as a person says it."""
    if name not in values:
        return "its default"
    return "all" if values[name] is None else str(values[name])


def _defenses(values: Mapping[str, object]) -> Mapping[str, object]:
    held = values.get("defenses", {})
    assert isinstance(held, Mapping)
    return held


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested values by dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@cache
def paper() -> Paper:
    """The file that comes with the package."""
    return build(Paper, read_toml(FILE), FILE.name)
