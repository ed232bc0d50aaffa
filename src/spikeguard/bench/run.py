"""The bench: every task in turns between us, the floor and other frameworks.

One record, written after each task and resumed from there.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeguard.bench import memory, peers, tasks, timing
from spikeguard.bench.floor import Floor
from spikeguard.bench.parts import parts
from spikeguard.bench.tasks import PRECISIONS, SMALL, VGG11, WRN16, Subject
from spikeguard.data.sources import load_data
from spikeguard.errors import UserError
from spikeguard.kernels import cpp_build
from spikeguard.networks.classifier import Classifier
from spikeguard.records.files import SCHEMA, plain, read_json, write_json
from spikeguard.runtime.machine import machine
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.training.loop import train
from spikeguard.training.recipes import recipe

Rounds = Callable[[int, int], None]
STEPS = 20  # of PGD
SAME_CLASSES = 0.95  # of the classes have to be the same before anything is timed


@dataclass(frozen=True)
class Settings:
    """``rounds`` of every task (the median counts); ``quick``.

    The small network only, fewer images, no growth curves.
    """

    quick: bool = False
    rounds: int = 5
    device: str = "cpu"

    @property
    def subjects(self) -> tuple[Subject, ...]:
        return (replace(SMALL, batch=64),) if self.quick else (VGG11, WRN16)

    @property
    def small(self) -> Subject:
        return replace(SMALL, batch=64) if self.quick else SMALL

    @property
    def images(self) -> int:
        """Attacked images."""
        return 64 if self.quick else 256


def run(
    settings: Settings, out: Path, resume: bool = False, report: Progress = no_progress
) -> dict[str, Any]:
    """Time everything, writing the record ``out`` after each task.

    UserError if ``out`` is a record of something else.
    """
    threads = torch.get_num_threads()
    head = {
        "schema": SCHEMA,
        "kind": "bench",
        "settings": plain(settings),
        "machine": replace(machine(), device=_device(settings)),
        "threads": threads,
        "path": cpp_build.path(settings.device),
        "peers": peers.versions(),
    }
    record: dict[str, Any] = {**head, "tasks": {}}
    if resume and out.exists():
        before = read_json(out)
        if any(before.get(k) != plain(v) for k, v in head.items()):
            raise UserError(
                f"{out} was made with other settings, versions or threads; leave out --resume to start anew"
            )
        record = before
    write_json(out, record)
    frameworks = {name: make() for name, make in peers.installed().items()}
    running = ""
    todo = _tasks(settings, frameworks, threads, lambda done, total: report(running, done, total))
    for name, work in todo.items():
        if name not in record["tasks"]:
            running = name
            report(name, 0, 1)
            record["tasks"][name] = work()
            write_json(out, record)
    record["finished"] = True
    write_json(out, record)
    return record


def _device(settings: Settings) -> str:
    return torch.cuda.get_device_name(0) if settings.device == "cuda" else "cpu"


def _tasks(
    settings: Settings, frameworks: Mapping[str, Any], threads: int, report: Rounds
) -> dict[str, Callable[[], dict[str, Any]]]:
    device = torch.device(settings.device)

    def timed(subject: Subject, adversarial: bool) -> dict[str, Any]:
        net = subject.network_on(device)
        x, _ = subject.images(device)
        checked = agreement(net, x, frameworks)
        work = tasks.training(subject, dict(frameworks), device, adversarial)
        entry = summary(timing.interleaved(work, settings.rounds, device, report, warm=2), subject.batch) | {
            "subject": asdict(subject),
            "agreement": checked,
        }
        precision = entry["best_precision"]
        operations = Floor(net, x, PRECISIONS[precision] or torch.float32).train_operations
        return entry | {"parts": parts(work[f"TGO {precision}"], device), "operations": operations}

    def attacked(subject: Subject) -> dict[str, Any]:
        net = subject.network_on(device)
        x, _ = subject.images(device)
        work = tasks.attacking(net, x, net(x).argmax(1), 8 / 255, 4, dict(frameworks), drop=False)
        return summary(timing.interleaved(work, settings.rounds, device, report), subject.batch) | {
            "subject": asdict(subject),
            "steps": 4,
        }

    def peak() -> dict[str, Any]:
        found: dict[str, Any] = {}
        names = ["vanilla", "TGO", *(name.split()[0] for name in frameworks)]
        for subject in settings.subjects:
            for precision in PRECISIONS:
                for name in names:
                    found.setdefault(subject.name, {})[f"{name} {precision}"] = memory.peak(
                        name, precision, asdict(subject), settings.device, threads
                    )
        return {"bytes": found, "subjects": [asdict(s) for s in settings.subjects]}

    todo: dict[str, Callable[[], dict[str, Any]]] = {}
    for subject in settings.subjects:
        todo[f"training step, {subject.name}"] = lambda s=subject: timed(s, False)  # type: ignore[misc]
    if "torchattacks" in peers.versions():
        todo[f"adversarial step, {settings.small.name}"] = lambda: timed(settings.small, True)
        todo["PGD-20, small network, trained"] = lambda: pgd_on_images(settings, frameworks, device, report)
        if not settings.quick:
            for subject in settings.subjects:
                todo[f"4 steps of PGD, {subject.name}"] = lambda s=subject: attacked(s)  # type: ignore[misc]
    todo["peak memory of a training step"] = peak
    if not settings.quick:
        from spikeguard.bench.growth import growth

        todo["growth"] = lambda: growth(device, settings.rounds, report)
    return todo


def agreement(net: Classifier, x: Tensor, frameworks: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters and predicted classes of every twin against ours.

    UserError if they are not the same network.
    """
    found = {}
    with torch.no_grad():
        ours = net(x).argmax(1)
    for name, framework in frameworks.items():
        other = tasks.theirs(net, framework, None)
        with torch.no_grad():
            same = float((other(x).argmax(1) == ours).float().mean())
        counts = [sum(p.numel() for p in n.parameters()) for n in (net, other)]
        if counts[0] != counts[1] or same < SAME_CLASSES:
            raise UserError(
                f"bench: {name} is not the same network as ours ({counts[1]} parameters for {counts[0]}, "
                f"{100 * same:.1f} % of classes equal)"
            )
        found[name] = {
            "same_classes": same,
            "parameters": counts[1],
            "classes_used": int(ours.unique().numel()),
        }
    return found


def summary(seconds: dict[str, list[float]], images: int) -> dict[str, Any]:
    """Medians, and ratios within rounds.

    Each contender over the floor of its precision, over ours, and the best precision of ours.
    """
    ours = [name for name in seconds if name.startswith(("TGO", "all steps"))]
    best = min(ours, key=lambda name: statistics.median(seconds[name]))
    precision = best.rsplit(" ", 1)[1]
    fastest_floor = min(
        (n for n in seconds if n.startswith("floor")), key=lambda n: statistics.median(seconds[n])
    )
    return {
        "seconds": seconds,
        "median": {name: statistics.median(v) for name, v in seconds.items()},
        "best": best,
        "best_precision": precision,
        "over_floor": {
            name: timing.ratio(v, seconds[f"floor {name.rsplit(' ', 1)[1]}"])
            for name, v in seconds.items()
            if "floor" not in name
        },
        "best_over_floor": timing.ratio(seconds[best], seconds[fastest_floor]),
        "over_best": {name: timing.ratio(v, seconds[best]) for name, v in seconds.items()},
        "images": images,
        "images_per_second": {name: images / statistics.median(v) for name, v in seconds.items()},
    }


def pgd_on_images(
    settings: Settings, frameworks: Mapping[str, Any], device: torch.device, report: Rounds
) -> dict[str, Any]:
    """PGD-20 on embedded test images at an eps where about half survive, on a network trained for it.

    Who survives has to be the same.
    """
    data = load_data("embedded")
    trained = replace(
        recipe("vanilla"),
        name="bench",
        neuron=peers.NEURON,
        options=settings.small.options,
        epochs=1,
        train_images=3000,
    )
    net = train(trained, data=data, device=device.type).net
    test = data.test.balanced(settings.images - settings.images % 10).to(device)
    x, y = test.pixels(), test.y
    eps, survive = half_eps(net, x, y)
    work = tasks.attacking(net, x, y, eps, STEPS, dict(frameworks), drop=True)
    entry = summary(timing.interleaved(work, settings.rounds, device, report), len(x))
    equal = {}
    ours = work["all steps float32"]().broken
    for name, framework in frameworks.items():
        other = tasks.theirs(net, framework, None)
        found = work[f"{name} float32"]()
        with torch.no_grad():
            equal[name] = float(((other(found).argmax(1) != y) == ours).float().mean())
    fast = timing.ratio(
        entry["seconds"][f"all steps {entry['best_precision']}"],
        entry["seconds"][f"dropping {entry['best_precision']}"],
    )
    return entry | {
        "eps": eps,
        "survive": survive,
        "steps": STEPS,
        "same_outcome": equal,
        "dropping_faster": fast,
    }


def half_eps(net: Classifier, x: Tensor, y: Tensor) -> tuple[float, float]:
    """An eps at which PGD leaves 40 to 60 % of the images right, by bisection, and that share."""
    low, high = 0.0, 32 / 255
    for _ in range(8):
        eps = (low + high) / 2
        share = 1 - float(tasks.our_attack(net, x, y, eps, STEPS, True)().broken.float().mean())
        if 0.45 <= share <= 0.55:
            break
        low, high = (eps, high) if share > 0.5 else (low, eps)
    return eps, share
