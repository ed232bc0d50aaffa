"""The demo: vanilla, two controls and TGO on the embedded images, attacked, with a page of what helped."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import torch

from spikeguard.data.sources import load_data
from spikeguard.demo.measuring import DELTA, EPS, NEIGHBOR_IMAGES, attacked_pictures, measure
from spikeguard.demo.training import Demo, train_network
from spikeguard.diagnosis.neighbors import EDGES, gain_scaled, neighbors
from spikeguard.errors import UserError
from spikeguard.kernels import cpp_build
from spikeguard.records.studies import DemoRecord, DemoSettings
from spikeguard.report.demo_page import write_page
from spikeguard.runtime.machine import machine
from spikeguard.runtime.progress import Progress, no_progress
from spikeguard.training.builder import pick_device, training_parts
from spikeguard.training.recipes import recipe

RECORD_NAME = "demo.json"


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
    demo = Demo(settings, out, data, test, progress)
    vanilla = train_network(demo, "vanilla", "vanilla")
    guarded = train_network(demo, "tgo", "TGO")
    # the gain is not chosen on test images
    held = training_parts(recipe("vanilla"), data)[1].to(test.x.device).pixels()[:NEIGHBOR_IMAGES]
    gain = round(gain_scaled(vanilla.net, held, neighbors(guarded.net, held, DELTA).mean, DELTA)[1], 2)
    control = train_network(demo, "control", f"vanilla, gains x {gain:g}", gain)
    noisy = train_network(demo, "nlif", "noise alone")
    rows = tuple(measure(demo, one) for one in (vanilla, control, noisy, guarded))
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
    write_page(record, attacked_pictures(demo, guarded.net), out / "index.html")
    record.write(out / RECORD_NAME)
    return record


def _open(settings: DemoSettings, out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder")
    if out.exists() and any(out.iterdir()):
        if not (out / RECORD_NAME).is_file():
            raise UserError(f"{out} holds something that is not a demo; choose another folder with --out")
        if not resume:
            for part in ("runs", "records"):
                shutil.rmtree(out / part, ignore_errors=True)
        elif DemoRecord.read(out / RECORD_NAME).settings != settings:
            raise UserError(f"{out} holds a demo with other settings; leave out --resume to start again")
    DemoRecord(settings, finished=False).write(out / RECORD_NAME)
