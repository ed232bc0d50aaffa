"""Networks that nobody here wrote, from the model zoos of the frameworks, wrapped and audited end to end.

On random weights and after a few steps of training. Two small ones; all of them, some of which take minutes,
with SPIKEGUARD_ZOO=all.
"""

import os
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.auditing import controls, suite
from spikeguard.auditing.suite import FGSM, PGD_20
from spikeguard.records.schema import Controls, FullBudget, ZeroBudget
from spikeguard.wrapping.guess import guess

Raw = Any
ZOO = "spikingjelly.activation_based.model"


@pytest.fixture(autouse=True)
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two functions that the model files import and only use to download weights."""
    name = "torchvision._internally_replaced_utils"
    if "torchvision" not in sys.modules:
        for part in ("torchvision", name):
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        monkeypatch.setattr(sys.modules[name], "load_state_dict_from_url", None, raising=False)


@pytest.fixture(autouse=True)
def short_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """FGSM and PGD in three steps, no controls."""
    short = replace(PGD_20, settings={**PGD_20.settings, "steps": 3})
    monkeypatch.setitem(suite.SUITES, "quick", (FGSM, short))
    quiet = Controls(0, ZeroBudget(0.0, 0.0), FullBudget(0.0, 0.1, breakable=False), (), ())
    monkeypatch.setattr(controls, "run_controls", lambda task, effort: quiet)


def spikingjelly(module: str, name: str, multistep: bool = True, **options: object) -> nn.Module:
    base = "spikingjelly.activation_based"
    neuron: Raw = import_module(f"{base}.neuron")
    functional: Raw = import_module(f"{base}.functional")
    surrogate: Raw = import_module(f"{base}.surrogate")
    net: nn.Module = getattr(import_module(f"{ZOO}.{module}"), name)(
        spiking_neuron=neuron.LIFNode,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
        **options,
    )
    functional.set_step_mode(net, "m" if multistep else "s")
    return net


def norse(name: str) -> nn.Module:
    models: Raw = import_module("norse.torch.models.conv")
    net: nn.Module = getattr(models, name)(num_channels=1, feature_size=28)
    return net


def sinabs() -> nn.Module:
    """Their converter on a plain network, as their documents begin."""
    from_torch: Raw = import_module("sinabs.from_torch")
    ann = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 13 * 13, 10)
    )
    net: nn.Module = from_torch.from_model(ann, batch_size=1, add_spiking_output=False).spiking_model
    return net


Made = tuple[str, Callable[[], nn.Module], tuple[int, ...]]
NETS: dict[str, Made] = {
    "spikingjelly MNISTNet": (
        "spikingjelly",
        lambda: spikingjelly("parametric_lif_net", "MNISTNet", channels=8),
        (1, 28, 28),
    ),
    "spikingjelly CIFAR10Net": (
        "spikingjelly",
        lambda: spikingjelly("parametric_lif_net", "CIFAR10Net", channels=8),
        (3, 32, 32),
    ),
    "spikingjelly spiking_resnet18, single step": (
        "spikingjelly",
        lambda: spikingjelly("spiking_resnet", "spiking_resnet18", multistep=False, num_classes=10),
        (3, 16, 16),
    ),
    "spikingjelly sew_resnet18": (
        "spikingjelly",
        lambda: spikingjelly("sew_resnet", "sew_resnet18", num_classes=10, cnf="ADD"),
        (3, 16, 16),
    ),
    "spikingjelly CIFAR10DVSNet": (
        "spikingjelly",
        lambda: spikingjelly("parametric_lif_net", "CIFAR10DVSNet", channels=4),
        (2, 2, 128, 128),
    ),
    "norse ConvNet": ("norse", lambda: norse("ConvNet"), (1, 28, 28)),
    "norse ConvNet4": ("norse", lambda: norse("ConvNet4"), (1, 28, 28)),
    "sinabs from_model": ("sinabs", sinabs, (1, 28, 28)),
}
"""Name -> package, factory, shape of an image."""
QUICK = ("spikingjelly MNISTNet", "sinabs from_model")


def images(shape: tuple[int, ...], count: int) -> tuple[Tensor, Tensor]:
    """Noisy copies of one random picture a class, and the classes."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(10, *shape, generator=generator)
    y = torch.arange(count) % 10
    noise = torch.randn(count, *shape, generator=generator)
    return (0.2 + 0.6 * pictures[y] + 0.05 * noise).clamp(0, 1), y


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS if os.environ.get("SPIKEGUARD_ZOO") == "all" else QUICK)
def test_a_network_of_a_zoo_is_wrapped_and_audited(name: str, short_suite: None) -> None:
    package, make, shape = NETS[name]
    pytest.importorskip(package)
    torch.manual_seed(0)
    net = make()
    x, y = images(shape, 10)
    found = guess(net.eval(), x)
    assert found is not None, "no way of calling it was found"
    steps, std = (16, 0.01) if package == "norse" else (2, 0.1)  # enough for its neurons to fire
    arguments = vars(found) | ({"timesteps": steps} if found.timesteps else {})
    model = sg.wrap(net, **arguments, mean=0.5, std=std, sample=x[:8])
    assert torch.equal(model(x), model(x))
    seen = [audited(model, x, y)]
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.5  # a few steps have to do
    adam = torch.optim.Adam(model.train().parameters(), 2e-3)
    for _ in range(8):
        adam.zero_grad()
        F.cross_entropy(model(x), y).backward()
        adam.step()
    seen.append(audited(model.eval(), x, y))
    print(f"{name}: {found.written()}; {seen}; {model.notes}")


def audited(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Clean and robust accuracy of a short audit without errors."""
    report = sg.audit(model, x[:8], y[:8], sg.Linf(8 / 255), effort="quick")
    errors = {f.id: f.message for f in report.flags if f.level == "error"}
    assert errors == {}
    assert report.robust_accuracy <= report.clean_accuracy
    return report.clean_accuracy, report.robust_accuracy
