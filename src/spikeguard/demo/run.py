"""The demo: a vanilla and a TGO network on the embedded images, attacked, with a page of what helped."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from spikeguard.auditing.audit import audit
from spikeguard.auditing.record import save
from spikeguard.auditing.witnesses import Witnesses
from spikeguard.data.images import Dataset, Images
from spikeguard.data.sources import load_data
from spikeguard.diagnose.neighbors import EDGES, Neighbors, gain_scaled, neighbors
from spikeguard.errors import UserError
from spikeguard.kernels import cpp_build
from spikeguard.networks.classifier import Classifier
from spikeguard.records.schema import Accuracy, AuditRecord, Origin, TrainingRecord
from spikeguard.records.studies import DemoNetwork, DemoRecord, DemoSettings, NeighborShares
from spikeguard.report.demo_page import Pictures, write_page
from spikeguard.runtime.machine import machine
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.threat import Linf
from spikeguard.training.builder import pick_device, training_parts
from spikeguard.training.checkpoint import RECORD
from spikeguard.training.load import load
from spikeguard.training.loop import Report, train
from spikeguard.training.objective import accuracy
from spikeguard.training.recipes import recipe

MARK = "demo.json"
DELTA = 0.2
EPS = ("8/255", "25/255")
NEIGHBOR_IMAGES = 100
Settings = DemoSettings


@dataclass(frozen=True)
class _Demo:
    """A running demo: settings, folder, images, and who hears of its progress."""

    settings: DemoSettings
    out: Path
    data: Dataset
    test: Images
    progress: Progress


@dataclass(frozen=True)
class _Trained:
    """A network of the demo and what its training took; ``factor`` multiplies its batch-norm gains."""

    net: Classifier
    role: str
    label: str
    training: TrainingRecord
    factor: float = 1.0


def run(
    settings: DemoSettings, out: Path, resume: bool = False, progress: Progress = no_progress
) -> DemoRecord:
    """Train, attack, write records, witnesses and page into ``out``; returns the record.

    Without ``resume`` an earlier demo in ``out`` is replaced; with it, what is finished there is kept.

    Raises:
        UserError: ``out`` holds something else.
    """
    begun = time.perf_counter()
    data = load_data("embedded")
    test = data.test.balanced(settings.images).to(pick_device(None))
    _open(settings, out, resume)  # last of the checks: it clears what an earlier demo left
    demo = _Demo(settings, out, data, test, progress)
    vanilla = _train(demo, "vanilla", "vanilla")
    guarded = _train(demo, "tgo", "TGO")
    # the factor is not chosen on test images
    held = training_parts(recipe("vanilla"), data)[1].to(test.x.device).pixels()[:NEIGHBOR_IMAGES]
    scaled, factor = gain_scaled(vanilla.net, held, neighbors(guarded.net, held, DELTA).mean, DELTA)
    control = _Trained(scaled, "control", "vanilla, gains scaled", vanilla.training, factor)
    rows = tuple(_measure(demo, one) for one in (vanilla, control, guarded))
    curve = rows[0].attacks[EPS[0]].controls
    assert curve is not None
    assert curve.curve is not None
    record = DemoRecord(
        settings=settings,
        finished=True,
        seed=settings.seed,
        images=settings.images,
        data="embedded Fashion-MNIST",
        eps=EPS,
        delta=DELTA,
        edges=tuple(EDGES.tolist()),
        curve_attack="SA-PGD with ten steps, by ASSG and by the network's own gradient, on "
        f"{curve.curve.images} of the images",
        networks=rows,
        path=cpp_build.path(),
        threads=torch.get_num_threads(),
        machine=machine(),
        seconds=round(time.perf_counter() - begun, 1),
    )
    write_page(record, _pictures(demo, guarded.net), out / "index.html")
    record.write(out / MARK)
    return record


def _open(settings: DemoSettings, out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder")
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise UserError(f"{out} holds something that is not a demo; choose another folder with --out")
        if not resume:
            for part in ("runs", "records"):
                shutil.rmtree(out / part, ignore_errors=True)
        elif DemoRecord.read(out / MARK).settings != settings:
            raise UserError(f"{out} holds a demo with other settings; leave out --resume to start again")
    DemoRecord(settings, finished=False).write(out / MARK)


def _train(demo: _Demo, name: str, label: str) -> _Trained:
    folder = demo.out / "runs" / name
    if not (folder / RECORD).exists():

        def progress(report: Report) -> None:
            demo.progress(f"training {name}", report.step, report.steps)

        chosen = replace(recipe(name), seed=demo.settings.seed, epochs=demo.settings.epochs)
        train(chosen, folder, resume=folder.exists(), data=demo.data, progress=progress)
    training = TrainingRecord.read(folder / RECORD)
    return _Trained(load(folder, str(pick_device(None))), name, label, training)


def _measure(demo: _Demo, one: _Trained) -> DemoNetwork:
    """Everything that the page says of one network, kept in ``records`` so that a stopped demo has it."""
    path = demo.out / "records" / f"{one.role}.json"
    if path.exists():
        return DemoNetwork.read(path)
    begun = time.perf_counter()
    attacks = {eps: _audit(demo, one, eps) for eps in EPS}
    right = accuracy(one.net, demo.data.test.to(demo.test.x.device))
    control = attacks[EPS[0]].controls
    assert control is not None
    assert control.curve is not None
    row = DemoNetwork(
        role=one.role,
        label=one.label,
        factor=one.factor,
        seconds=one.training.cost.seconds,
        epochs=demo.settings.epochs,
        training_images=one.training.cost.images,
        parameters=one.training.parameters,
        clean=Accuracy.of(right, len(demo.data.test)),
        attacks=attacks,
        neighbors=_shares(neighbors(one.net, demo.test.pixels()[:NEIGHBOR_IMAGES], DELTA)),
        curve=tuple((factor * 8 / 255, share) for factor, share in control.curve.points),
        attack_seconds=round(time.perf_counter() - begun, 2),
    )
    row.write(path)
    return row


def _audit(demo: _Demo, one: _Trained, eps: str) -> AuditRecord:
    def progress(member: str, done: int, total: int, /) -> None:
        demo.progress(f"attacking {one.label} at {eps}: {member}", done, total)

    test, settings = demo.test, demo.settings
    threat = Linf(float(int(eps.split("/")[0]) / 255))
    done = audit(
        one.net,
        test.pixels(),
        test.y,
        threat,
        effort="quick",
        seed=settings.seed,
        progress=progress,
        index=test.index,
    )
    target = f"runs/{one.role}" if one.role != "control" else "control"
    record = replace(done.record, origin=Origin(target=target, data="embedded", split="test"))
    return save(record, done.witnesses, demo.out / "records" / f"{one.role}-{eps.replace('/', 'of')}.json")


def _shares(found: Neighbors) -> NeighborShares:
    histogram = {name: tuple(counts) for name, counts in found.histogram.items()}
    return NeighborShares(**{**asdict(found), "histogram": histogram}, mean=found.mean)


def _pictures(demo: _Demo, net: Classifier, count: int = 8) -> Pictures:
    """The first images that the TGO network loses to a witness, with its classes before and after."""
    x, y, classes = demo.test.pixels(), demo.test.y, demo.data.classes
    path = demo.out / "records" / f"tgo-{EPS[0].replace('/', 'of')}.witnesses.npz"
    rows, found = Witnesses.load(path).read(x, Linf(8 / 255))
    order = rows.argsort()[:count]
    rows, found = rows[order], found[order]
    with torch.no_grad():
        after: Tensor = net(found).argmax(1)
    names = [(classes[int(a)], classes[int(b)]) for a, b in zip(y[rows], after, strict=True)]
    return Pictures(x[rows].cpu().numpy(), found.cpu().numpy(), names)
