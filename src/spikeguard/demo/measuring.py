"""What the demo measures on a network: audits, clean accuracy, potentials near the threshold."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

import torch
from torch import Tensor

from spikeguard.auditing.audit import audit
from spikeguard.auditing.record import save
from spikeguard.auditing.witnesses import Witnesses
from spikeguard.demo.training import Demo, TrainedNetwork
from spikeguard.diagnosis.neighbors import Neighbors, neighbors
from spikeguard.networks.classifier import Classifier
from spikeguard.records.schema import Accuracy, AuditRecord, Origin
from spikeguard.records.studies import DemoNetwork, NeighborShares
from spikeguard.report.demo_page import Pictures
from spikeguard.threat import Linf
from spikeguard.training.objective import accuracy

DELTA = 0.2
EPS = ("8/255", "25/255")
LARGE = {"tgo"}  # roles that are attacked with the large budget, too
NEIGHBOR_IMAGES = 100


def measure(demo: Demo, one: TrainedNetwork) -> DemoNetwork:
    """Everything that the page says of one network, kept in ``records`` so that a stopped demo has it."""
    path = demo.out / "records" / f"{one.role}.json"
    if path.exists():
        return DemoNetwork.read(path)
    begun = time.perf_counter()
    attacks = {eps: _audit(demo, one, eps) for eps in EPS if eps == EPS[0] or one.role in LARGE}
    right = accuracy(one.net, demo.data.test.to(demo.test.x.device))
    control = attacks[EPS[0]].controls
    assert control is not None
    assert control.curve is not None
    row = DemoNetwork(
        role=one.role,
        label=one.label,
        factor=one.gain,
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


def _audit(demo: Demo, one: TrainedNetwork, eps: str) -> AuditRecord:
    """The quick audit of a network at a budget such as '8/255'."""

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
    origin = Origin(target=f"runs/{one.role}", data="embedded", split="test")
    record = replace(done.record, origin=origin)
    return save(record, done.witnesses, demo.out / "records" / f"{one.role}-{eps.replace('/', 'of')}.json")


def _shares(found: Neighbors) -> NeighborShares:
    histogram = {name: tuple(counts) for name, counts in found.histogram.items()}
    return NeighborShares(**{**asdict(found), "histogram": histogram}, mean=found.mean)


def attacked_pictures(demo: Demo, net: Classifier, count: int = 8) -> Pictures:
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
