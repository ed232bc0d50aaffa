"""The demo.

A vanilla and a TGO network on the embedded images, both attacked, and a page that says what helped for real.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeguard.auditing.audit import audit
from spikeguard.auditing.witnesses import Witnesses
from spikeguard.data.images import Dataset, Images
from spikeguard.data.sources import load_data
from spikeguard.diagnose.neighbors import EDGES, gain_scaled, neighbors
from spikeguard.errors import UserError
from spikeguard.kernels import cpp_build
from spikeguard.networks.classifier import Classifier
from spikeguard.records.files import SCHEMA, plain, read_json, write_json
from spikeguard.report.demo_page import write_page
from spikeguard.runtime.machine import machine
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.stats import wilson
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
SHARES_IMAGES = 100


@dataclass(frozen=True)
class Settings:
    """What the demo does: ``images`` attacked test images, ``epochs`` of training for both networks."""

    images: int = 300
    epochs: int = 4
    seed: int = 0


def run(settings: Settings, out: Path, resume: bool = False, tell: Progress = no_progress) -> dict[str, Any]:
    """Train, attack, write records, witnesses and page into ``out``; returns the record. ``tell(stage, done,
    total)`` shows progress.

    Without ``resume`` an earlier demo in ``out`` is replaced; with it, what is finished there is kept.
    UserError if ``out`` holds something else.
    """
    begun = time.perf_counter()
    data = load_data("embedded")
    test = data.test.balanced(settings.images).to(pick_device(None))
    _open(settings, out, resume)  # last of the checks: it clears what an earlier demo left
    x, y = test.pixels(), test.y
    networks = []
    vanilla, told = _train("vanilla", settings, out, data, tell)
    networks.append(("vanilla", "vanilla", vanilla, told))
    guarded, told = _train("tgo", settings, out, data, tell)
    held = (
        training_parts(recipe("vanilla"), data)[1].to(x.device).pixels()[:SHARES_IMAGES]
    )  # the factor is not chosen on test images
    control, factor = gain_scaled(vanilla, held, neighbors(guarded, held, DELTA).mean, DELTA)
    networks.append(("control", "vanilla, gains scaled", control, {**networks[0][3], "factor": factor}))
    networks.append(("tgo", "TGO", guarded, told))
    rows = [
        _measure(role, label, net, told, settings, out, test, data, tell)
        for role, label, net, told in networks
    ]
    record = {
        "schema": SCHEMA,
        "kind": "demo",
        "seed": settings.seed,
        "images": settings.images,
        "data": "embedded Fashion-MNIST",
        "eps": list(EPS),
        "delta": DELTA,
        "edges": EDGES.tolist(),
        "curve_attack": "SA-PGD with ten steps, through ASSG and through the network's own gradient, on "
        "{images} of the images".format(**rows[0]["attacks"][EPS[0]]["controls"]["curve"]),
        "networks": rows,
        "path": cpp_build.path(),
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "finished": True,
    }
    record["seconds"] = round(time.perf_counter() - begun, 1)
    write_page(record, _pictures(guarded, out, x, y, data), out / "index.html")
    write_json(out / MARK, {**record, "settings": plain(settings)})
    return record


def _open(settings: Settings, out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder")
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise UserError(f"{out} holds something that is not a demo; choose another folder with --out")
        if not resume:
            for part in ("runs", "records"):
                shutil.rmtree(out / part, ignore_errors=True)
        elif read_json(out / MARK).get("settings") != plain(settings):
            raise UserError(f"{out} holds a demo with other settings; leave out --resume to start anew")
    write_json(out / MARK, {"schema": SCHEMA, "kind": "demo", "settings": plain(settings), "finished": False})


def _train(
    name: str, settings: Settings, out: Path, data: Dataset, tell: Progress
) -> tuple[Classifier, dict[str, Any]]:
    folder = out / "runs" / name
    if not (folder / RECORD).exists():

        def progress(report: Report) -> None:
            tell(f"training {name}", report.step, report.steps)

        wanted = replace(recipe(name), seed=settings.seed, epochs=settings.epochs)
        train(wanted, folder, resume=folder.exists(), data=data, progress=progress)
    done = read_json(folder / RECORD)
    cost = done["cost"]
    about = {
        "seconds": cost["seconds"],
        "epochs": settings.epochs,
        "training_images": cost["images"],
        "parameters": done["parameters"],
    }
    return load(folder, str(pick_device(None))), about


def _measure(
    role: str,
    label: str,
    net: Classifier,
    about: dict[str, Any],
    settings: Settings,
    out: Path,
    test: Images,
    data: Dataset,
    tell: Progress,
) -> dict[str, Any]:
    """Everything the page says of one network.

    Kept in ``records`` so that a stopped demo need not do it again.
    """
    path = out / "records" / f"{role}.json"
    if path.exists():
        return read_json(path)
    x, y, index = test.pixels(), test.y, test.index
    begun, attacks = time.perf_counter(), {}
    for eps in EPS:
        threat = Linf(float(int(eps.split("/")[0]) / 255))

        def progress(member: str, done: int, total: int, eps: str = eps) -> None:
            tell(f"attacking {label} at {eps}: {member}", done, total)

        done = audit(net, x, y, threat, effort="quick", seed=settings.seed, progress=progress, index=index)
        done.record["target"] = f"runs/{role}" if role != "control" else "control"
        attacks[eps] = read_json(done.save(out / "records" / f"{role}-{eps.replace('/', 'of')}.json"))
    right = accuracy(net, data.test.to(x.device))
    row = {
        "schema": SCHEMA,
        "role": role,
        "label": label,
        "factor": 1.0,
        **about,
        "clean": {
            "accuracy": right,
            "interval": list(wilson(round(right * len(data.test)), len(data.test))),
            "images": len(data.test),
        },
        "attacks": attacks,
        "neighbors": _shares(net, x[:SHARES_IMAGES]),
        "curve": [
            [factor * 8 / 255, share] for factor, share in attacks[EPS[0]]["controls"]["curve"]["points"]
        ],
        "attack_seconds": round(time.perf_counter() - begun, 2),
    }
    write_json(path, row)
    return read_json(path)


def _shares(net: Classifier, x: Tensor) -> dict[str, Any]:
    found = neighbors(net, x, DELTA)
    return {**plain(found), "mean": found.mean}


def _pictures(
    net: Classifier, out: Path, x: Tensor, y: Tensor, data: Dataset, count: int = 8
) -> dict[str, Any]:
    """The first images that the TGO network loses to a witness, with its classes before and after."""
    path = out / "records" / f"tgo-{EPS[0].replace('/', 'of')}.witnesses.npz"
    rows, found = Witnesses.load(path).read(x, Linf(8 / 255))
    order = rows.argsort()[:count]
    rows, found = rows[order], found[order]
    with torch.no_grad():
        after = net(found).argmax(1)
    names = [(data.classes[int(a)], data.classes[int(b)]) for a, b in zip(y[rows], after, strict=True)]
    return {"clean": x[rows].cpu().numpy(), "found": found.cpu().numpy(), "names": names}
