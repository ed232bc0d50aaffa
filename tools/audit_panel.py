"""Every member of the standard suite on every image of a panel of networks: results/audit-panel.json. It goes
on where it stopped.

python tools/audit_panel.py FOLDER

FOLDER holds the runs `vanilla`, `tgo`, `at`, `at-tgo`, see tools/audit_bars.py.

A member earns its place in the suite by a sample that no other one breaks. The record says which samples each
breaks; `earned` prunes: from the most expensive member down, whoever breaks nothing that another remaining
member does not break, too, goes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import spikeguard as sg
from spikeguard.auditing.run import BROKEN, traits
from spikeguard.auditing.scoring import fresh_draws
from spikeguard.auditing.suite import AUTOATTACK, FULL, RESERVE, STANDARD, Member, members
from spikeguard.auditing.witnesses import keep
from spikeguard.data.images import Images
from spikeguard.models import eval_mode
from spikeguard.neurons import spiking
from spikeguard.records.files import SCHEMA, read_json, write_json
from spikeguard.runtime.machine import machine

ROOT = Path(__file__).parents[1]
OUT = ROOT / "results" / "audit-panel.json"
SAME = {  # what the record calls otherwise than suite-v2, which has restarts too
    "AutoAttack Square": "Square-5000",
    **{
        f"SA-PGD-100 ASSG {law}": f"SA-PGD-100 x 3 ASSG {law}"
        for law in ("atan 0.435 ce", "triangle 1.6 ce", "atan 0.435 seen ce")
    },
}
sys.path.insert(0, str(ROOT / "tests"))
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
CONTROLS = frozenset(
    {"noise", "FGSM", "PGD-20"}
)  # stay whatever they break: the record's masking and its flags need them


def panel(folder: Path) -> Iterator[tuple[str, Callable[[], Any], float, Images]]:
    """Name, network, eps and images of each place of the panel."""
    from fakes import FAKES, honest

    data = sg.load_data("embedded")
    train, some, few, more = (
        data.train.balanced(2000),
        data.test.balanced(IMAGES),
        data.test.balanced(FEWER),
        data.test.balanced(MORE),
    )
    others = more.select(torch.nonzero(~torch.isin(more.index, some.index)).flatten())
    for eps in (8, 16):
        for name in RUNS:
            yield f"{name} at {eps}/255", lambda name=name: sg.load(folder / name), eps / 255, some

    def noisy() -> Any:
        net = sg.load(folder / "tgo")
        for layer in spiking(net).values():
            layer.noise = sg.Noise(0.3, at_eval=True)
        return net

    yield "tgo, noise on at 8/255", noisy, 8 / 255, few
    plain = honest("vanilla", train.pixels(), train.y)
    for name in FOREIGN:
        yield (
            f"{name} (no framework) at 16/255",
            lambda name=name: FAKES[name](plain),
            16 / 255,
            few if name == "random shift" else some,
        )
    for name in ("T=8", "ANN"):
        yield (
            f"{name} (no framework) at 16/255",
            lambda name=name: honest(name, train.pixels(), train.y),
            16 / 255,
            some,
        )
    for name in RUNS:
        yield f"{name}, other images at 8/255", lambda name=name: sg.load(folder / name), 8 / 255, others


def matrix(net: Any, eps: float, images: Images, more: Sequence[Member]) -> dict[str, Any]:
    """Per member the samples it breaks, and its seconds.

    All members meet all samples that are right when clean.
    """
    x, y, threat = images.pixels(), images.y, sg.Linf(eps)
    with eval_mode(net), torch.no_grad():
        random = bool((net(x).argmax(1) != net(x).argmax(1)).any())
        right = fresh_draws(net, x, y, 1, 20) > 0.5 if random else net(x).argmax(1) == y
    x, y = x[right], y[right]
    found = traits(net, random, *(() if net(x[:2].requires_grad_()).requires_grad else ("no gradient",)))
    rows: list[Member] = [
        m
        for m in members("full", threat, found | {"no gradient", "no logits"})[0]
        if m in (*STANDARD, *RESERVE)
    ]
    told: dict[str, Any] = {"images": int(right.sum()), "breaks": {}, "seconds": {}}
    for member in [*rows, *more]:
        begun = time.perf_counter()
        try:
            got = member.run(net, x, y, threat, 0, torch.arange(len(x)), draws=4 if random else 1)
        except (
            Exception
        ) as error:  # a member that cannot meet this network breaks nothing; the record says why
            told.setdefault("failed", {})[member.key] = str(error)[:200]
            continue
        with eval_mode(net):
            broken = (
                fresh_draws(net, got.x, y, 2, 25) <= BROKEN
                if random
                else keep(net, x, y, got.x, got.broken, threat)[1]
            )
        told["breaks"][member.key] = torch.nonzero(broken).flatten().tolist()
        told["seconds"][member.key] = round(time.perf_counter() - begun, 2)
        print(f"  {member.key}: {int(broken.sum())} of {len(x)}, {told['seconds'][member.key]} s", flush=True)
    return told


def earned(
    record: dict[str, Any], pool: frozenset[str] = frozenset(m.key for m in FULL)
) -> dict[str, list[str]]:
    """Per member that stays, the networks where it alone of those that stay breaks a sample."""
    samples = {
        (place, k): {
            SAME.get(m, m) for m, broke in row["breaks"].items() if SAME.get(m, m) in pool and k in broke
        }
        for place, row in record["networks"].items()
        for k in range(row["images"])
    }
    cost: dict[str, float] = {}
    for row in record["networks"].values():
        for name, seconds in ((SAME.get(m, m), s) for m, s in row["seconds"].items()):
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


def network(place: str) -> str:
    """The network of a place of the panel, whatever the budget and the images."""
    return place.split(" at ")[0].removesuffix(", other images")


def lost(record: dict[str, Any]) -> int:
    """Samples that a suite pruned without looking at their network (at no budget) would not break.

    Though some member does.
    """
    missing = 0
    for name, row in record["networks"].items():
        if name.startswith("argmax"):
            continue
        others = {k: v for k, v in record["networks"].items() if network(k) != network(name)}
        kept = set(earned({"networks": others}))
        missing += len(
            set().union(*row["breaks"].values())
            - set().union(*(set(b) for m, b in row["breaks"].items() if SAME.get(m, m) in kept))
        )
    return missing


def main() -> None:
    if len(sys.argv) < 2:
        for name, places in earned(read_json(OUT)).items():
            print(f"{name}: {', '.join(f'{p} ({places.count(p)})' for p in dict.fromkeys(places)) or '-'}")
        return
    record = (
        read_json(OUT)
        if OUT.exists()
        else {"schema": SCHEMA, "kind": "audit panel", "machine": machine(), "networks": {}}
    )
    for name, make, eps, images in panel(Path(sys.argv[1])):
        if name not in record["networks"]:
            print(name, flush=True)
            record["networks"][name] = matrix(
                make(), eps, images, AUTOATTACK if name.endswith(" at 8/255") and len(images) > FEWER else ()
            )
            write_json(OUT, record)


if __name__ == "__main__":
    main()
