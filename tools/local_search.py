"""What longer searches break beyond `standard`: results/local-search.json.

python tools/local_search.py FOLDER [NETWORK ...]    (without NETWORK: all)

FOLDER holds the runs `tgo`, `at` and `robust` (`spikeguard train RECIPE --epochs 4 --seed 0`, `at` with
`--defenses.at.eps 16/255 --defenses.at.warmup 0.25`). The suite `standard` attacks first; then searches
of 10,000 queries and Square-5000 attack what it leaves. The same command continues
where an earlier one stopped; the suite's state is kept in FOLDER. docs/audit.md shows the record.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from population_search import population_search
from torch import Tensor

import spikeguard as sg
from spikeguard.attacks import Attacked
from spikeguard.auditing.choice import members
from spikeguard.auditing.findings import convergence
from spikeguard.auditing.member import LOCAL
from spikeguard.auditing.record import digests
from spikeguard.auditing.run import run_suite
from spikeguard.auditing.state import CLEAN_WRONG
from spikeguard.auditing.suite import FULL, STANDARD, VERSION, fingerprint
from spikeguard.auditing.task import Plan, Session, Task, traits
from spikeguard.data.images import Images
from spikeguard.gradients import ASSG, BPDA, Estimator, SwapSurrogate
from spikeguard.losses import margin
from spikeguard.networks.classifier import Classifier
from spikeguard.records.base import Record
from spikeguard.records.schema import Convergence, Digests
from spikeguard.report.markdown import bullets, paragraph, table
from spikeguard.runtime.machine import Machine, machine
from spikeguard.surrogates import Atan, Triangle
from spikeguard.training.load import load_classifier

OUT = Path(__file__).parents[1] / "results" / "local-search.json"
IMAGES = 100
NETWORKS = {"tgo": 8, "at": 25, "robust": 25}
"""Names of the runs and their budgets in 255ths, Linf."""
SOURCES: tuple[Estimator, ...] = (
    ASSG(),
    ASSG(1.6, Triangle()),
    ASSG(start_from_first=True),
    SwapSurrogate(Atan(4.0)),
    BPDA(Atan(4.0)),
)
LOCAL_MEMBER = next(m for m in STANDARD if m.family == LOCAL)
QUERIES = 10_000
"""Of each longer search: ten times those of the local search in suite-v3."""
ROUNDS, STEPS = 10, 60
"""Fresh starts of a search, and steps along gradients in each."""


@dataclass(frozen=True)
class Found:
    """``samples`` that a search breaks of those that `standard` leaves, its passes of images, forward and
    backward, and its seconds of one processor."""

    samples: tuple[int, ...]
    passes: int
    seconds: float


@dataclass(frozen=True)
class SearchRow:
    """A network under a budget of ``eps``: the samples that `standard` leaves of ``right`` ones, how many its
    local search broke, its passes by member; ``beyond``: what searches break after it."""

    digests: Digests
    eps: float
    right: int
    left: tuple[int, ...]
    by_local_search: int
    passes: dict[str, int]
    convergence: Convergence | None
    beyond: dict[str, Found] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchRecord(Record):
    """Networks under `standard` and under longer searches, on ``images`` test images each."""

    kind: ClassVar[str] = "local search"
    suite: str
    hash: str
    images: int
    machine: Machine
    networks: dict[str, SearchRow] = field(default_factory=dict)


@dataclass(frozen=True)
class Survivors:
    """The images that `standard` leaves, and the best point it found for each."""

    net: Classifier
    threat: sg.Linf
    x: Tensor
    y: Tensor
    index: Tensor
    best: Tensor

    def select(self, rows: Tensor) -> Survivors:
        """Some of them."""
        return replace(self, x=self.x[rows], y=self.y[rows], index=self.index[rows], best=self.best[rows])

    def blocks(self, queries: int, first: Tensor, seed: int) -> Attacked:
        """The local search from the points ``first``."""
        return sg.attacks.block_search(
            self.net, self.x, self.y, self.threat, queries=queries, first=first, seed=seed, index=self.index
        )


Part = Callable[[Survivors], list[Attacked]]
"""A part of a search; what it breaks the next one does not attack."""


def longer(on: Survivors) -> list[Attacked]:
    """The local search once more from the best point, longer and with other draws."""
    return [on.blocks(QUERIES, on.best, seed=1)]


def from_gradients(turn: int) -> Part:
    """A local search from a fresh start, where gradients of another source have brought it close."""
    gradient = SOURCES[turn % len(SOURCES)]
    loss = ("margin", "ce")[turn // len(SOURCES) % 2]

    def part(on: Survivors) -> list[Attacked]:
        near = sg.sapgd(
            *(on.net, on.x, on.y, on.threat),
            steps=STEPS,
            loss=loss,
            gradient=gradient,
            seed=1 + turn,
            index=on.index,
        )
        return [near, on.blocks(QUERIES // ROUNDS, near.x, seed=1 + turn)]

    return part


def population(on: Survivors) -> list[Attacked]:
    """A population that begins with the best point and where gradients of several sources end, then flips."""
    ends = [
        sg.sapgd(
            *(on.net, on.x, on.y, on.threat), steps=STEPS, loss="margin", gradient=g, seed=31, index=on.index
        )
        for g in SOURCES
    ]
    found, passes = on.best.clone(), 0
    for row, (image, label, sample) in enumerate(zip(on.x, on.y.tolist(), on.index.tolist(), strict=True)):
        first = [on.best[row], *(end.x[row] for end in ends)]
        found[row], used = population_search(on.net, image, label, on.threat, first, 2 * QUERIES, seed=sample)
        passes += used
    with torch.no_grad():
        loss = margin(on.net(found), on.y)
    return [*ends, Attacked(found, loss > 0, loss, passes, 0, torch.full_like(on.y, -1))]


def square(on: Survivors) -> list[Attacked]:
    """Square-5000, which the local search replaced in `standard`."""
    member = next(m for m in FULL if m.id == "square5000")
    return [member.run(on.net, on.x, on.y, on.threat, 0, on.index)]


SEARCHES: dict[str, tuple[str, tuple[Part, ...]]] = {
    "longer": (f"block search-{QUERIES:,} from the best point", (longer,)),
    "from-gradients": (
        f"{ROUNDS} fresh starts: SA-PGD-{STEPS}, then block search-{QUERIES // ROUNDS:,}",
        tuple(from_gradients(turn) for turn in range(ROUNDS)),
    ),
    "square5000": ("Square-5000", (square,)),
    "population": (f"populations and flips of pixels, {2 * QUERIES:,} passes", (population,)),
}
"""Titles and parts of the searches that attack what `standard` leaves, by id."""
BLOCKS = ("longer", "from-gradients")


def found_by(parts: Sequence[Part], on: Survivors) -> Found:
    """What a search breaks; a break counts if it holds on the network itself."""
    begun, passes, broken = time.process_time(), 0, torch.zeros(len(on.x), dtype=torch.bool)
    for part in parts:
        rows = torch.nonzero(~broken).flatten()
        if not len(rows):
            break
        here = on.select(rows)
        for got in part(here):
            on.threat.check(got.x, here.x)
            with torch.no_grad():
                wrong = on.net(got.x).argmax(1) != here.y
            broken[rows[got.broken & wrong]] = True
            passes += got.forwards + got.backwards
    seconds = round(time.process_time() - begun, 1)
    return Found(tuple(on.index[broken].tolist()), passes, seconds)


def standard(folder: Path, name: str, net: Classifier, images: Images) -> tuple[Survivors, SearchRow]:
    """What the suite leaves, its state kept in ``folder``, and a row without longer searches."""
    x, y, threat = images.pixels(), images.y, sg.Linf(NETWORKS[name] / 255)
    chosen = members("standard", threat, traits(net, False), adaptive=net.adaptive)[0]
    found, suite = digests(net, x, y), fingerprint("standard")
    conditions: dict[str, object] = {"suite": suite, "model": found.model, "images": found.images}
    conditions |= {"members": [m.id for m in chosen], "eps": NETWORKS[name]}
    session = Session(_say, (folder / f"{name}.standard.npz", conditions))
    task = Task(net, x, y, threat, chosen, plan=Plan(random=False), session=session)
    state = run_suite(task)
    left = torch.nonzero(state.right > 0).flatten()
    row = SearchRow(
        found,
        NETWORKS[name] / 255,
        int((state.first_by != CLEAN_WRONG).sum()),
        tuple(left.tolist()),
        state.broken.get(LOCAL_MEMBER.id, 0),
        {id: int(cost["forwards"] + cost["backwards"]) for id, cost in state.cost.items()},
        convergence(task, state),
    )
    return Survivors(net, threat, x[left], y[left], left, state.found[left]), row


def _say(stage: str, done: int, total: int) -> None:
    print(f"  {stage}", flush=True)


def measure(folder: Path, name: str, record: SearchRecord) -> SearchRecord:
    """The record with whatever it lacks of a network, written after each search."""
    net, images = load_classifier(folder / name), sg.load_data("embedded").test.balanced(record.images)
    print(name, flush=True)
    on, row = standard(folder, name, net, images)
    if (before := record.networks.get(name)) and before.digests == row.digests:
        row = replace(row, beyond=before.beyond)
    for id, (title, parts) in SEARCHES.items():
        if id not in row.beyond:
            row = replace(row, beyond={**row.beyond, id: found_by(parts, on)})
            print(f"  {title}: {len(row.beyond[id].samples)} of {len(row.left)} left", flush=True)
        record = replace(record, networks={**record.networks, name: row})
        record.write(OUT)
    return record


def section(record: SearchRecord) -> list[str]:
    """Lines of docs/audit.md: what longer searches break beyond `standard`."""
    header = ["network", "Linf", "right", "`standard` leaves", f"broken by {LOCAL_MEMBER.title}"]
    header += [title for title, _ in SEARCHES.values()]
    lines = ["## What longer searches break", ""]
    lines += paragraph(
        f"`standard` of {record.suite} on {record.images} test images; then longer searches attack what it "
        "leaves. Numbers of images, in the last columns of those beyond `standard`."
    )
    lines += ["", *table(header, [_cells(name, row) for name, row in record.networks.items()]), ""]
    return [*lines, *bullets(_notes(record)), ""]


def _cells(name: str, row: SearchRow) -> list[str]:
    beyond = [row.beyond.get(id) for id in SEARCHES]
    counts = (row.right, len(row.left), row.by_local_search)
    return [
        name,
        f"{255 * row.eps:.0f}/255",
        *map(str, counts),
        *("not run" if found is None else str(len(found.samples)) for found in beyond),
    ]


def _notes(record: SearchRecord) -> list[str]:
    """What the searches cost, and whether the audit says itself that it has not converged."""
    rows = record.networks
    curves = {name: row.convergence for name, row in rows.items()}
    late = [f"{name} {100 * c.last_doubling:.0f}" for name, c in curves.items() if c is not None]
    together = {
        name: len({s for id in BLOCKS if id in row.beyond for s in row.beyond[id].samples})
        for name, row in rows.items()
    }
    cost = {
        name: f"{found.passes / row.passes[LOCAL_MEMBER.id]:.1f}"
        for name, row in rows.items()
        if (found := row.beyond.get("square5000")) and row.passes.get(LOCAL_MEMBER.id)
    }
    return [
        "Both block searches together break "
        + ", ".join(f"{count} more of {name}" for name, count in together.items())
        + f". The second half of {LOCAL_MEMBER.title} broke, in points: {', '.join(late)}; above half a "
        "point the audit raises `not-converged`.",
        "Square-5000 takes "
        + ", ".join(f"{factor} times ({name})" for name, factor in cost.items())
        + f" the passes of {LOCAL_MEMBER.title}, though it attacks only what `standard` leaves.",
        "Made by `tools/local_search.py`: `results/local-search.json`.",
    ]


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(NETWORKS)
    suite = fingerprint("standard")
    record = SearchRecord(VERSION, suite, IMAGES, machine())
    if OUT.exists():
        kept = SearchRecord.read(OUT)
        record = replace(kept, machine=machine()) if kept.hash == suite else record
    for name in names:
        record = measure(folder, name, record)


if __name__ == "__main__":
    main()
