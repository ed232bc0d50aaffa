"""The bench: every task in turns between us, the floor and other frameworks.

One record, written after each task and resumed from there.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from spikeguard.attacks import Attacked
from spikeguard.bench import memory, peers, tasks, timing
from spikeguard.bench.floor import Floor
from spikeguard.bench.parts import parts
from spikeguard.bench.peers import Framework
from spikeguard.bench.tasks import PRECISIONS, SMALL, VGG11, WRN16
from spikeguard.data.sources import load_data
from spikeguard.errors import UserError
from spikeguard.kernels import cpp_build
from spikeguard.networks.classifier import Classifier
from spikeguard.records.bench import (
    Agreement,
    BenchRecord,
    BenchSettings,
    Dropping,
    PeakMemory,
    Subject,
    Timing,
)
from spikeguard.runtime.machine import machine
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.training.loop import train
from spikeguard.training.recipes import recipe

Rounds = Callable[[int, int], None]
Frameworks = Mapping[str, Framework]
STEPS = 20  # of PGD
SAME_CLASSES = 0.95  # of the classes have to be the same before anything is timed


@dataclass(frozen=True)
class Settings(BenchSettings):
    """The settings of a bench, and what follows from them."""

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Networks whose training step is timed."""
        return (replace(SMALL, batch=64),) if self.quick else (VGG11, WRN16)

    @property
    def small(self) -> Subject:
        """The network of the adversarial step and of PGD-20."""
        return replace(SMALL, batch=64) if self.quick else SMALL

    @property
    def images(self) -> int:
        """Attacked images."""
        return 64 if self.quick else 256


def run(settings: Settings, out: Path, resume: bool = False, report: Progress = no_progress) -> BenchRecord:
    """Time everything, writing the record ``out`` after each task.

    UserError if ``out`` is a record of something else.
    """
    where = replace(machine(), device=_device(settings))
    threads, path = torch.get_num_threads(), cpp_build.path(settings.device)
    record = BenchRecord(settings, where, threads, path, peers.versions())
    if resume and out.exists():
        before = BenchRecord.read(out)
        started = replace(before, timed={}, memory=None, growth=None, finished=False)
        if started.to_json() != record.to_json():
            raise UserError(
                f"{out} was made with other settings, versions or threads; leave out --resume to start anew"
            )
        record = before
    record.write(out)
    frameworks = {name: make() for name, make in peers.installed().items()}
    for name, work in _timed(settings, frameworks).items():
        if name not in record.timed:
            report(name, 0, 1)
            record = replace(record, timed={**record.timed, name: work(partial(report, name))})
            record.write(out)
    if record.memory is None:
        report("peak memory of a training step", 0, 1)
        record = replace(record, memory=_peak(settings, frameworks, threads))
        record.write(out)
    if record.growth is None and not settings.quick:
        from spikeguard.bench.growth import growth

        report("growth", 0, 1)
        device = torch.device(settings.device)
        record = replace(record, growth=growth(device, settings.rounds, partial(report, "growth")))
    record = replace(record, finished=True)
    record.write(out)
    return record


def _device(settings: Settings) -> str:
    return torch.cuda.get_device_name(0) if settings.device == "cuda" else "cpu"


def _timed(settings: Settings, frameworks: Frameworks) -> dict[str, Callable[[Rounds], Timing]]:
    """The tasks whose seconds are measured, by name, in order."""
    todo: dict[str, Callable[[Rounds], Timing]] = {
        f"training step, {subject.name}": partial(_training_step, settings, frameworks, subject, False)
        for subject in settings.subjects
    }
    if "torchattacks" not in peers.versions():
        return todo
    small = settings.small
    todo[f"adversarial step, {small.name}"] = partial(_training_step, settings, frameworks, small, True)
    todo["PGD-20, small network, trained"] = partial(pgd_on_images, settings, frameworks)
    if not settings.quick:
        for subject in settings.subjects:
            todo[f"4 steps of PGD, {subject.name}"] = partial(_four_steps, settings, frameworks, subject)
    return todo


def _training_step(
    settings: Settings, frameworks: Frameworks, subject: Subject, adversarial: bool, report: Rounds
) -> Timing:
    device = torch.device(settings.device)
    net = tasks.network_of(subject, device)
    x, _ = tasks.batch_of(subject, device)
    checked = agreement(net, x, frameworks)
    work = tasks.training(subject, frameworks, device, adversarial)
    seconds = timing.interleaved(work, settings.rounds, device, report, warm=2)
    found = replace(summary(seconds, subject.batch), subject=subject, agreement=checked)
    precision = found.best_precision
    operations = Floor(net, x, PRECISIONS[precision] or torch.float32).train_operations
    return replace(found, parts=parts(work[f"TGO {precision}"], device), operations=operations)


def _four_steps(settings: Settings, frameworks: Frameworks, subject: Subject, report: Rounds) -> Timing:
    device = torch.device(settings.device)
    net = tasks.network_of(subject, device)
    x, _ = tasks.batch_of(subject, device)
    work = tasks.attacking(net, x, net(x).argmax(1), 8 / 255, 4, frameworks, drop=False)
    seconds = timing.interleaved(work, settings.rounds, device, report)
    return replace(summary(seconds, subject.batch), subject=subject, steps=4)


def _peak(settings: Settings, frameworks: Frameworks, threads: int) -> PeakMemory:
    contenders = ["vanilla", "TGO", *(name.split()[0] for name in frameworks)]
    sizes = {
        subject.name: {
            f"{name} {precision}": memory.peak(
                memory.Case(name, precision, subject, settings.device, threads)
            )
            for precision in PRECISIONS
            for name in contenders
        }
        for subject in settings.subjects
    }
    return PeakMemory(sizes, settings.subjects)


def agreement(net: Classifier, x: Tensor, frameworks: Frameworks) -> dict[str, Agreement]:
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
        found[name] = Agreement(same, counts[1], int(ours.unique().numel()))
    return found


def summary(seconds: Mapping[str, tuple[float, ...]], images: int) -> Timing:
    """Medians, and ratios within rounds.

    Each contender over the floor of its precision, over ours, and the best precision of ours.
    """
    ours = [name for name in seconds if name.startswith(("TGO", "all steps"))]
    best = min(ours, key=lambda name: statistics.median(seconds[name]))
    precision = best.rsplit(" ", 1)[1]
    fastest_floor = min(
        (n for n in seconds if n.startswith("floor")), key=lambda n: statistics.median(seconds[n])
    )
    return Timing(
        seconds=dict(seconds),
        median={name: statistics.median(v) for name, v in seconds.items()},
        best=best,
        best_precision=precision,
        over_floor={
            name: timing.ratio(v, seconds[f"floor {name.rsplit(' ', 1)[1]}"])
            for name, v in seconds.items()
            if "floor" not in name
        },
        best_over_floor=timing.ratio(seconds[best], seconds[fastest_floor]),
        over_best={name: timing.ratio(v, seconds[best]) for name, v in seconds.items()},
        images=images,
        images_per_second={name: images / statistics.median(v) for name, v in seconds.items()},
    )


def pgd_on_images(settings: Settings, frameworks: Frameworks, report: Rounds) -> Timing:
    """PGD-20 on embedded test images at an eps where about half survive, on a network trained for it.

    Who survives has to be the same.
    """
    device, data = torch.device(settings.device), load_data("embedded")
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
    work = tasks.attacking(net, x, y, eps, STEPS, frameworks, drop=True)
    found = summary(timing.interleaved(work, settings.rounds, device, report), len(x))
    ours = work["all steps float32"]()
    assert isinstance(ours, Attacked)
    equal = {}
    for name, framework in frameworks.items():
        other = tasks.theirs(net, framework, None)
        images = work[f"{name} float32"]()
        with torch.no_grad():
            equal[name] = float(((other(images).argmax(1) != y) == ours.broken).float().mean())
    best = found.best_precision
    faster = timing.ratio(found.seconds[f"all steps {best}"], found.seconds[f"dropping {best}"])
    return replace(found, steps=STEPS, dropping=Dropping(eps, survive, faster, equal))


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
