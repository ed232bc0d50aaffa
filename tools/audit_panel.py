"""Every member of the standard suite on every image of a panel of networks: results/audit-panel.json.

python tools/audit_panel.py FOLDER    (without FOLDER: print which samples only one member breaks)

FOLDER holds the runs `vanilla`, `tgo`, `at`, `at-tgo`, see tools/audit_bars.py. The panel grows in
FOLDER/audit-panel.json, where the same command continues; complete, it replaces the one in results.

A member earns its place in the suite by a sample that no other one breaks. The record says which samples each
breaks; ``earned`` prunes, from the most expensive member down.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

import spikeguard as sg
from spikeguard.auditing.choice import members
from spikeguard.auditing.member import Member
from spikeguard.auditing.scoring import fresh_draws
from spikeguard.auditing.suite import AUTOATTACK, FULL, RESERVE, STANDARD, VERSION
from spikeguard.auditing.task import BROKEN, traits
from spikeguard.auditing.witnesses import keep
from spikeguard.data.images import Images
from spikeguard.losses import margin
from spikeguard.models import Model, eval_mode
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import spiking
from spikeguard.records.base import Record
from spikeguard.records.member_names import id_of
from spikeguard.runtime.machine import Machine, machine
from spikeguard.training.load import load_classifier

ROOT = Path(__file__).parents[1]
OUT = ROOT / "results" / "audit-panel.json"
SAME = {  # members of the panel of suite-v1 that later suites run with restarts, or under another name
    id_of("AutoAttack Square"): id_of("Square-5000"),
    **{
        id_of(f"SA-PGD-100 ASSG {settings}"): id_of(f"SA-PGD-100 x 3 ASSG {settings}")
        for settings in ("atan 0.435 ce", "triangle 1.6 ce", "atan 0.435 seen ce")
    },
}
RENAMED = {"suite-v1": SAME, "suite-v3": {"block1000": "block1000-6000"}}
"""By suite of a panel, ids of members that stand for others today."""
RUNS, IMAGES, FEWER, MORE = ("vanilla", "tgo", "at", "at-tgo"), 60, 20, 100
FOREIGN = (
    "very narrow surrogate",
    "zero gradient",
    "no_grad inside",
    "detached time",
    "quantized input",
    "saturated logits",
    "argmax",
    "random shift",
)
HONESTLY = ("T=6", "ANN")
CONTROLS = frozenset({"noise", "fgsm", "pgd20", "square200"})
"""They stay whatever they break: masking and flags need them."""
MASKING = frozenset({"pgd40x2", "apgd50"})
"""They stay because they say how much of the masking is the optimizer's."""
SOURCES = frozenset(m.id for m in STANDARD if m.id.startswith("sapgd"))
"""They stay because the local search begins at the points that they find."""
ALL = frozenset(m.id for m in FULL)


@dataclass(frozen=True)
class PanelRow:
    """A network under a budget: ``images`` that are right without attack, samples that each member breaks,
    its seconds, why it failed."""

    images: int
    broken: dict[str, tuple[int, ...]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PanelRecord(Record):
    """The panel: a row for each network and budget."""

    kind: ClassVar[str] = "audit panel"
    machine: Machine
    networks: dict[str, PanelRow] = field(default_factory=dict)
    suite: str = "suite-v1"

    def broken(self, row: PanelRow) -> dict[str, frozenset[int]]:
        """By id of today, the samples of a row that a member breaks."""
        found: dict[str, frozenset[int]] = {}
        for member, samples in row.broken.items():
            id = self.id_of_today(member)
            found[id] = found.get(id, frozenset()) | frozenset(samples)
        return found

    @property
    def standard(self) -> frozenset[str]:
        """The members of ``standard`` when the panel was made, by their ids of today."""
        ids = frozenset(m.id for m in STANDARD)
        return (ids | {"square5000"}) - {"block1000-6000", "square200"} if self.suite == "suite-v1" else ids

    def id_of_today(self, member: str) -> str:
        """The id that stands for a member of the panel."""
        return RENAMED.get(self.suite, {}).get(member, member)


Place = tuple[str, Callable[[], Model], float, Images]


def panel(folder: Path) -> Iterator[Place]:
    """Name, network, eps and images of each place of the panel."""
    sys.path.insert(0, str(ROOT / "tests"))
    from fakes import FAKES, honest

    data = sg.load_data("embedded")
    train, some = data.train.balanced(2000), data.test.balanced(IMAGES)
    few, more = data.test.balanced(FEWER), data.test.balanced(MORE)
    others = more.select(torch.nonzero(~torch.isin(more.index, some.index)).flatten())
    x, y = train.pixels(), train.y
    for eps in (8, 16):
        for name in RUNS:
            yield f"{name} at {eps}/255", partial(load_classifier, folder / name), eps / 255, some
    yield "tgo, noise on at 8/255", partial(_noisy, folder / "tgo"), 8 / 255, few
    plain = honest("vanilla", x, y)
    for name in FOREIGN:
        images = few if name == "random shift" else some
        yield f"{name} (no framework) at 16/255", partial(FAKES[name], plain), 16 / 255, images
    for name in HONESTLY:
        yield f"{name} (no framework) at 16/255", partial(honest, name, x, y), 16 / 255, some
    for name in RUNS:
        yield f"{name}, other images at 8/255", partial(load_classifier, folder / name), 8 / 255, others


def _noisy(run: Path) -> Classifier:
    net = load_classifier(run)
    for layer in spiking(net).values():
        layer.noise = sg.Noise(0.3, at_eval=True)
    return net


def attack_all(net: Model, eps: float, images: Images, more: Sequence[Member]) -> PanelRow:
    """The samples that each member breaks, and its seconds.

    All members attack all samples that are right without attack. A warm member starts at the best point of
    those before it that does not break the sample: as if they had all failed there.
    """
    x, y, threat = images.pixels(), images.y, sg.Linf(eps)
    with eval_mode(net), torch.no_grad():
        random = bool((net(x).argmax(1) != net(x).argmax(1)).any())
        right = fresh_draws(net, x, y, 1, 20) > 0.5 if random else net(x).argmax(1) == y
    x, y = x[right], y[right]
    has_gradient = net(x[:2].requires_grad_()).requires_grad
    found = traits(net, random, *(() if has_gradient else ("no gradient",)))
    chosen = members("full", threat, found | {"no gradient", "no logits"})[0]
    row, near = PanelRow(int(right.sum())), Near(x)
    for member in [*(m for m in chosen if m in (*STANDARD, *RESERVE)), *more]:
        begun = time.perf_counter()
        try:
            eot = 4 if random else 1
            got = member.run(net, x, y, threat, 0, torch.arange(len(x)), near.x, draws=eot)
        except Exception as error:  # a member that cannot attack this network breaks nothing
            row.failed[member.id] = str(error)[:200]
            continue
        with eval_mode(net):
            broken = (
                fresh_draws(net, got.x, y, 2, 25) <= BROKEN
                if random
                else keep(net, x, y, got.x, got.broken, threat)[1]
            )
        near.note(net, got.x, y, broken)
        row.broken[member.id] = tuple(torch.nonzero(broken).flatten().tolist())
        row.seconds[member.id] = round(time.perf_counter() - begun, 2)
        print(f"  {member.title}: {int(broken.sum())} of {len(x)}, {row.seconds[member.id]} s", flush=True)
    return row


class Near:
    """Each sample's point ``x`` of highest margin among those that do not break it."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.margin = x.clone(), torch.full((len(x),), -torch.inf)

    def note(self, net: Model, x: Tensor, y: Tensor, broken: Tensor) -> None:
        """Take over points of higher margin."""
        with eval_mode(net), torch.no_grad():
            value = margin(net(x), y)
        closer = ~broken & (value > self.margin)
        self.x[closer], self.margin[closer] = x[closer], value[closer]


def earned(record: PanelRecord, pool: frozenset[str] = ALL, without: str = "") -> dict[str, list[str]]:
    """For each member that stays, the places where only it breaks a sample, of the members that stay.

    ``without``: a network whose places do not count.
    """
    networks = {place: row for place, row in record.networks.items() if network(place) != without}
    samples = {
        (place, k): {m for m, broke in record.broken(row).items() if m in pool and k in broke}
        for place, row in networks.items()
        for k in range(row.images)
    }
    cost: dict[str, float] = {}
    for row in networks.values():
        for name, seconds in ((record.id_of_today(m), s) for m, s in row.seconds.items()):
            if name in pool:
                cost[name] = cost.get(name, 0.0) + seconds
    left = set(cost)
    for name in sorted(cost, key=lambda n: -cost[n]):
        if name not in CONTROLS and not any(breakers & left == {name} for breakers in samples.values()):
            left.discard(name)
    alone: dict[str, list[str]] = {name: [] for name in cost if name in left}
    for (place, _), breakers in samples.items():
        if len(only := breakers & left) == 1:
            alone[next(iter(only))].append(place)
    return alone


def idle(record: PanelRecord) -> dict[str, float]:
    """Members of ``standard`` without a reason to stay, and their share of its seconds."""
    alone = earned(record, record.standard)
    seconds = dict.fromkeys(record.standard, 0.0)
    for row in record.networks.values():
        for member, spent in row.seconds.items():
            if (id := record.id_of_today(member)) in seconds:
                seconds[id] += spent
    stay = CONTROLS | MASKING | SOURCES | {member for member, places in alone.items() if places}
    total = sum(seconds.values())
    return {member: seconds[member] / total for member in sorted(record.standard - stay)}


def network(place: str) -> str:
    """The network of a place of the panel, whatever the budget and the images."""
    return place.split(" at ")[0].removesuffix(", other images")


def lost(record: PanelRecord) -> int:
    """Samples that some member breaks, but not a suite that was pruned without their network."""
    missing = 0
    for name, row in record.networks.items():
        if name.startswith("argmax"):
            continue
        kept = set(earned(record, without=network(name)))
        broken = record.broken(row)
        missing += len(
            frozenset().union(*broken.values())
            - frozenset().union(*(samples for m, samples in broken.items() if m in kept))
        )
    return missing


def main() -> None:
    if len(sys.argv) < 2:
        for name, found in earned(PanelRecord.read(OUT)).items():
            print(f"{name}: {', '.join(f'{p} ({found.count(p)})' for p in dict.fromkeys(found)) or '-'}")
        return
    folder = Path(sys.argv[1])
    grows = folder / OUT.name
    record = PanelRecord.read(grows) if grows.exists() else PanelRecord(machine(), suite=VERSION)
    if record.suite != VERSION:
        sys.exit(f"{grows} is a panel of {record.suite}: move it away first")
    for name, make, eps, images in panel(folder):
        if name not in record.networks:
            print(name, flush=True)
            more = AUTOATTACK if name.endswith(" at 8/255") and len(images) > FEWER else ()
            row = attack_all(make(), eps, images, more)
            record = replace(record, networks={**record.networks, name: row})
            record.write(grows)
    record.write(OUT)


if __name__ == "__main__":
    main()
