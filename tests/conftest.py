"""Shared pieces of the tests."""

import copy
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor

from spikeguard.auditing import choice, controls, panel, suite
from spikeguard.auditing.audit import Audit, audit
from spikeguard.auditing.member import Member
from spikeguard.auditing.witnesses import Witnesses
from spikeguard.data.images import Dataset, Images
from spikeguard.data.sources import load_data
from spikeguard.defenses import Step
from spikeguard.gradients import EOT
from spikeguard.kernels import compiler
from spikeguard.networks import build
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Neuron
from spikeguard.records.schema import AuditRecord, Settings
from spikeguard.surrogates import Atan
from spikeguard.threat import Linf
from spikeguard.training.load import load_classifier
from spikeguard.training.loop import train
from spikeguard.training.recipe import Recipe
from spikeguard.training.recipes import recipe

COMPILED = 2**16  # elements; images here have a quarter of the usual pixels, so a quarter of WORTHWHILE
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job that a script has put into the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def quiet_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, a seeded global generator.

    The tensors are tiny and each core has a test process of its own. Kernels are compiled only in tests
    marked so, because compiling takes seconds each.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    marked = request.node.get_closest_marker("compiled")
    monkeypatch.setattr(compiler, "WORTHWHILE", COMPILED if marked else 2**62)


class Once:
    """Folders whose content is made once for all workers of a test run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder of that name; the first who needs it fills it by ``make``, others wait."""
        folder, done = self.root / name, self.root / f"{name}.done"
        with FileLock(self.root / f"{name}.lock"):
            if not done.exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                done.touch()
        return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """What is expensive to make and shared by several workers."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    root.mkdir(exist_ok=True)
    return Once(root)


def shorter(settings: Settings) -> Settings:
    """A fifth of the steps, a tenth of the queries, a third of the targets."""
    least = {"steps": (5, 2), "queries": (10, 20), "targets": (3, 1)}
    fewer = {
        name: max(int(str(settings[name])) // by, low)
        for name, (by, low) in least.items()
        if name in settings
    }
    return {**settings, **fewer}


def shorten_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit's controls on a few images, in few steps."""
    runs = {
        name: (attack, shorter(settings), EOT(2) if isinstance(gradient, EOT) else gradient)
        for name, (attack, settings, gradient) in controls.RUNS.items()
    }
    monkeypatch.setattr(controls, "RUNS", runs)
    monkeypatch.setattr(panel, "LADDER", panel.LADDER[:1])
    monkeypatch.setattr(controls, "CURVE", (0.0, 1.0, 2.0))
    monkeypatch.setitem(controls.PANELS, "quick", 10)
    monkeypatch.setitem(controls.CURVES, "quick", (10, 3))


def shortened(member: Member) -> Member:
    """The same member in few steps."""
    return replace(member, settings=shorter(member.settings))


def shorten_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick audits of the same members, each in few steps, with short controls.

    So are attacks that are adaptive to a defense.
    """
    shorten_controls(monkeypatch)
    monkeypatch.setitem(suite.SUITES, "quick", tuple(map(shortened, suite.QUICK)))
    whole = choice.member_of
    monkeypatch.setattr(choice, "member_of", lambda adaptive: shortened(whole(adaptive)))


@pytest.fixture
def short_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of audits that ask about something else than controls."""
    shorten_controls(monkeypatch)


@pytest.fixture
def short_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of audits that ask about something else than how strong they are."""
    shorten_suite(monkeypatch)


def awake(net: Classifier, batches: int = 30, size: int = 32) -> Classifier:
    """The network in eval mode after its batch norms have seen some images.

    Before that its neurons are silent.
    """
    net.train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(batches):
            net(torch.rand(size, *net.in_shape, generator=generator))
    return net.eval()


@pytest.fixture(scope="session")
def tiny_once() -> Classifier:
    """What ``tiny`` copies."""
    neuron = Neuron(decay=0.5, surrogate=Atan(2.0))
    net = awake(build("small", classes=10, in_shape=(1, 8, 8), timesteps=3, neuron=neuron, width=8, seed=1))
    with torch.no_grad():
        net.head.bias.sub_(net(torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(2))).mean(0))
    return net


@pytest.fixture
def tiny(tiny_once: Classifier) -> Classifier:
    """An untrained network small enough for anything, whose neurons fire and whose classes differ."""
    return copy.deepcopy(tiny_once)


@pytest.fixture
def pair(tiny: Classifier) -> tuple[Tensor, Tensor]:
    """Seven images, and the classes that the tiny network gives them."""
    x = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, tiny(x).argmax(1)


@pytest.fixture
def step(tiny: Classifier) -> Step:
    """Half-way through a training of the tiny network."""
    generator = torch.Generator().manual_seed(5)
    return Step(
        tiny.train(), torch.rand(8, 1, 8, 8, generator=generator), torch.arange(8) % 10, key=3, progress=0.5
    )


def halved(images: Images) -> Images:
    """Every 2x2 pixels as one: a quarter of the work."""
    return replace(images, x=F.avg_pool2d(images.x.float(), 2).round().to(torch.uint8))


@pytest.fixture(scope="session")
def little_data() -> Dataset:
    """500 + 100 embedded images of 14x14 pixels."""
    data = load_data("embedded")
    train_part, test_part = halved(data.train.balanced(500)), halved(data.test.balanced(100))
    return Dataset("little", train_part, test_part, data.classes, data.mean, data.std)


def little_recipe(**changes: object) -> Recipe:
    """A training of a few seconds."""
    neuron = Neuron(decay=0.5, detach_reset=True, surrogate=Atan(2.0))
    settings: dict[str, object] = {
        "neuron": neuron,
        "options": {"width": 3},
        "epochs": 2,
        "batch_size": 50,
        "augment": True,
        "timesteps": 2,
    }
    return Recipe(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.fixture
def little_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo on few images with narrow networks; its own settings run in every submission's check."""
    from spikeguard.demo import run as demo
    from spikeguard.demo import training

    full = load_data("embedded")
    train_part, test_part = full.train.balanced(500), full.test.balanced(100)
    few = Dataset("little", train_part, test_part, full.classes, full.mean, full.std)
    monkeypatch.setattr(panel, "LADDER", panel.LADDER[:1])
    monkeypatch.setattr(controls, "CURVE", (0.0, 1.0, 2.0))
    narrow = {name: replace(recipe(name), options={"width": 4}) for name in ("vanilla", "nlif", "tgo")}
    monkeypatch.setattr(demo, "load_data", lambda _: few)
    for module in (demo, training):
        monkeypatch.setattr(module, "recipe", narrow.__getitem__)


@pytest.fixture
def images() -> Images:
    """Twelve random 8x8 images."""
    generator = torch.Generator().manual_seed(3)
    return Images.of(
        torch.randint(0, 256, (12, 1, 8, 8), generator=generator, dtype=torch.uint8), torch.arange(12) % 10
    )


ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """In CI a skip is a failure unless its reason is listed."""
    if not os.environ.get("CI"):
        return
    allowed = [line.partition("#")[0].strip() for line in ALLOWED_SKIPS.read_text().splitlines()]
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(a and a in reason for a in allowed):
            terminalreporter.write_line(
                f"a skip that tests/allowed_skips.txt does not name: {report.nodeid}: {reason}", red=True
            )
            assert terminalreporter._session
            terminalreporter._session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def small_net(little_data: Dataset, once: Once) -> Classifier:
    """A network that has learned something, for tests of whole audits."""
    recipe = little_recipe(options={"width": 6}, epochs=6, validation=0.0, augment=False)
    torch.set_num_threads(1)
    return load_classifier(once("small_net", lambda folder: train(recipe, folder, data=little_data)))


@pytest.fixture(scope="session")
def small_images(little_data: Dataset) -> tuple[Tensor, Tensor]:
    """Sixty test images in [0, 1] and their classes."""
    return little_data.test.pixels()[:60], little_data.test.y[:60]


def stored_audit(folder: Path) -> Audit:
    """The audit that another worker may have made; where its witnesses lie is not part of it."""
    record = AuditRecord.read(folder / "audit.json")
    return Audit(replace(record, witnesses=None), Witnesses.load(folder / "audit.witnesses.npz"))


@pytest.fixture(scope="session")
def small_audit(small_net: Classifier, small_images: tuple[Tensor, Tensor], once: Once) -> Audit:
    """A quick audit of the small network at 0.03."""
    torch.set_num_threads(1)

    def make(folder: Path) -> None:
        audit(small_net, *small_images, Linf(0.03), effort="quick").save(folder / "audit.json")

    return stored_audit(once("small_audit", make))


@pytest.fixture(scope="session")
def short_audit(small_net: Classifier, small_images: tuple[Tensor, Tensor], once: Once) -> Audit:
    """The same by ``short_suite`` on compiled kernels."""
    torch.set_num_threads(1)

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            shorten_suite(patch)
            patch.setattr(compiler, "WORTHWHILE", COMPILED)
            audit(small_net, *small_images, Linf(0.03), effort="quick").save(folder / "audit.json")

    return stored_audit(once("short_audit", make))
