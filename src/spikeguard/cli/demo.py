"""``spikeguard demo``: four networks, trained and attacked, and a page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from spikeguard.cli import common
from spikeguard.cli.progress import progress

if TYPE_CHECKING:
    from spikeguard.records.studies import DemoRecord


def parser() -> common.Parser:
    made = common.Parser(
        "demo",
        "Train a vanilla network, two controls and TGO on the embedded images, attack them, write a page and "
        "the records.",
    )
    made.add_argument(
        "--out", type=common.path, default=Path("spikeguard-demo"), help="folder for page, records and runs"
    )
    made.add_argument(
        "--images", type=common.positive, default=300, help="test images to attack, a multiple of 10"
    )
    made.add_argument("--epochs", type=common.positive, default=4, help="epochs of each training")
    made.add_argument(
        "--seed", type=common.seed, default=0, help="seed of weights, batches, noise and attacks"
    )
    made.add_argument("--resume", action="store_true", help="keep what an interrupted demo has finished")
    return made


def run(arguments: list[str]) -> int:
    given = parser().read(arguments)
    common.start(given.threads)
    from spikeguard.demo import run as demo
    from spikeguard.records.studies import DemoSettings
    from spikeguard.report.reading import reading

    begun = time.perf_counter()
    with progress() as shown:
        record = demo.run(
            DemoSettings(given.images, given.epochs, given.seed), given.out, given.resume, shown.show
        )
    if given.json:
        common.print_json(record.to_json())
        return 0
    _show(record)
    for paragraph in reading(record):
        common.say(f"\n{paragraph}")
    common.say(
        f"\nwrote {given.out / 'index.html'} (open it in a browser), records and runs beside it; "
        f"{time.perf_counter() - begun:.0f} s"
    )
    common.say(
        f"next: spikeguard attack {given.out / 'runs' / 'tgo'} --attack pgd --steps 100, or spikeguard "
        "train tgo --name mine"
    )
    return 0


def _show(record: DemoRecord) -> None:
    """The tables of accuracies and of potentials near the threshold."""
    from spikeguard.report.text import percent, with_interval
    from spikeguard.stats import COVERS

    networks = record.networks
    for eps in record.eps:
        attacked = [n for n in networks if eps in n.attacks]
        titles = [m.title for m in attacked[0].attacks[eps].members if m.alone is not None]
        rows = []
        for n in attacked:
            a = n.attacks[eps]
            rows.append([n.label, *(with_interval(v) for v in (a.clean, *a.alone.values(), a.worst_case))])
        title = f"attacked with {eps}: accuracy in % (95 % interval), {record.images} test images"
        common.table(title, ["network", "clean", *titles, "worst case"], rows)
        common.say(f"an interval covers {COVERS}")
    layers = list(networks[0].neighbors.absolute)
    header = ["network", *(f"layer {k + 1} (std)" for k in range(len(layers))), "mean", "training, s"]
    rows = []
    for n in networks:
        shares = n.neighbors
        both = (f"{percent(shares.absolute[k])} ({percent(shares.relative[k])})" for k in layers)
        rows.append([n.label, *both, percent(shares.mean), f"{n.seconds:.0f}"])
    delta = record.delta
    common.table(
        f"potentials with |u| < {delta}, in % (in brackets: |u| < {delta} times the layer's std)",
        header,
        rows,
    )
