"""A result prints as one short line: shapes, never the numbers of a tensor."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import spikeguard as sg
from spikeguard.attacks.batch import Batch
from spikeguard.auditing import Audit
from spikeguard.auditing.witnesses import Witnesses
from spikeguard.defenses import Step, View
from spikeguard.diagnosis.neighbors import neighbors
from spikeguard.records.schema import Accuracy, AuditRecord, Budget, Flag, SuiteId
from spikeguard.records.training import Conditions, EpochRow, TrainingCost, TrainingRecord
from spikeguard.runtime.machine import machine
from spikeguard.training import Run

Y = torch.tensor([0, 1, 0, 1])
X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net() -> sg.networks.classifier.Classifier:
    return sg.build("small", classes=2, in_shape=(1, 8, 8), timesteps=2, width=2).eval()


def shown(result: object) -> str:
    text = repr(result)
    assert "tensor(" not in text
    assert "\n" not in text
    assert len(text) < 200
    return text


def test_attacks_and_threats(net: sg.networks.classifier.Classifier) -> None:
    broken = torch.tensor([True, False, True, True])
    found = replace(sg.fgsm(net, X, Y, sg.Linf(0.1)), broken=broken, forwards=8, backwards=4)
    assert shown(found) == "Attacked(3 of 4 broken, x [4, 1, 8, 8], 8 forwards, 4 backwards)"
    assert shown(sg.Linf(0.1)) == "Linf(eps=0.1)"
    assert shown(sg.L2(torch.tensor([0.5, 0.1]))) == "L2(eps=2 values from 0.1 to 0.5)"
    assert shown(Batch(X, Y, sg.Linf(0.1), torch.arange(4))) == "Batch(x [4, 1, 8, 8], Linf(eps=0.1), seed 0)"


def test_audits_and_witnesses() -> None:
    record = AuditRecord(
        suite=SuiteId("suite", "quick", "0"),
        threat=Budget("linf", 0.1),
        seed=0,
        images=4,
        random_model=False,
        scored_by="class",
        clean=Accuracy.of(0.75, 4),
        worst_case=Accuracy.of(0.25, 4),
        verdict="",
        members=(),
        first_by=(0, 0, -1, -2),
        right=(0.0, 0.0, 1.0, 0.0),
        machine=machine(),
        flags=(Flag("few-images", "info", "few"), Flag("no-gradient", "error", "none")),
    )
    grid = torch.zeros(2, 1, 8, 8, dtype=torch.uint16)
    witnesses = Witnesses(torch.tensor([0, 1]), grid, torch.tensor([3]), X[:1])
    assert shown(witnesses) == "Witnesses(3 inputs of shape [1, 8, 8], 1 of them exact)"
    assert shown(Audit(record, witnesses)) == (
        "Audit(robust accuracy at most 25.0 %, clean 75.0 %, 4 images, linf eps 0.1, quick, 2 flags, "
        "1 of them errors)"
    )


def test_images_runs_and_neighbors(net: sg.networks.classifier.Classifier) -> None:
    data = sg.load_data("embedded")
    assert shown(data) == (
        "Dataset('embedded', 10000 training and 2000 test images of shape [1, 28, 28], 10 classes)"
    )
    assert shown(data.test) == "Images(2000 of shape [1, 28, 28], torch.uint8)"
    epoch = EpochRow(1, 2.0, 2.0, 0.0, 0.5, 1.0, validation_accuracy=0.5)
    where = Conditions(1, "native", "cpu", "2")
    record = TrainingRecord({}, where, machine(), TrainingCost(1.0, 2, 3), 12, (epoch,))
    text = "12 parameters, 1 epochs, validation accuracy 50.0 %"
    assert shown(Run(net, None, record)) == f"Run({text}, not kept)"
    assert shown(Run(net, Path("runs/one"), record)) == f"Run({text}, in runs/one)"
    assert shown(neighbors(net, X)).startswith("Neighbors(body.stages.0.fire ")
    step = Step(net, X, Y)
    assert shown(step) == "Step(x [4, 1, 8, 8], progress 0.00, views clean)"
    assert shown(View(X, 0.5)) == "View(x [4, 1, 8, 8], weight 0.5, freeze_bn False)"
