"""Nothing that a model holds, and nothing of the process, is another one after a measurement."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import spikeguard as sg
from spikeguard.attacks import ATTACKS
from spikeguard.diagnosis.neighbors import neighbors
from spikeguard.gradients import ASSG, BPDA, SwapSurrogate
from spikeguard.surrogates import Atan

N, SIDE, CLASSES = 4, 8, 4
THREAT = sg.Linf(8 / 255)


class Around(nn.Module):
    """A module of torch between two maps: images [N, 1, 8, 8] to logits."""

    def __init__(self, inner: nn.Module, shape: tuple[int, ...] = (4, 4, 4)) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(SIDE * SIDE, 64), inner, nn.LazyLinear(CLASSES)
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(self.first(x.flatten(1)).view(len(x), *self.shape))
        z = z[0] if isinstance(z, tuple) else z
        logits: Tensor = self.last(z.flatten(1))
        return logits


class Statistics(nn.Module):
    """Running statistics of its own, in whatever mode it is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.mean: Tensor
        self.calls = 0

    def forward(self, z: Tensor) -> Tensor:
        self.mean += 0.1 * (z.detach().mean((0, 2, 3)) - self.mean)
        self.calls += 1
        return z - self.mean[:, None, None]


class Membrane(nn.Module):
    """Keeps its state as attributes, in a list, in a dictionary and in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Any = 0.0
        self.history: list[Tensor] = []
        self.memories: dict[str, Any] = {"v": 0.0, "seen": torch.zeros(2)}
        self.helper = Helper()

    def forward(self, z: Tensor) -> Tensor:
        v = self.v = 0.5 * z
        self.history.append(self.v)
        self.memories["v"] = self.v
        self.memories["seen"] += 1
        self.helper.held = self.v
        return (v > 0.1).float() + 0 * z


class Helper:
    def __init__(self) -> None:
        self.held: Tensor | None = None


class Meddles(nn.Module):
    """Changes modes, flags, hooks, parameters, the default type and random generators."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.weight = nn.BatchNorm2d(4), nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        self.norm.train()
        self.weight.data.mul_(0.999)
        self.weight.requires_grad_(False)
        self.register_forward_hook(lambda *_: None)
        random.random()
        np.random.rand()
        normed: Tensor = self.norm(z)
        return normed * self.weight + 0.0 * torch.rand_like(z)


class WritesIntoItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(SIDE * SIDE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.map(x.sub_(0.5).div_(0.25).flatten(1))
        return logits


def scripted(inner: nn.Module) -> nn.Module:
    made: nn.Module = torch.jit.script(inner)
    return made


def own() -> nn.Module:
    return sg.build("small", classes=CLASSES, in_shape=(1, SIDE, SIDE), timesteps=2, width=2)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm1d": lambda: Around(nn.BatchNorm1d(64), (64,)),
    "BatchNorm2d": lambda: Around(nn.BatchNorm2d(4)),
    "BatchNorm3d": lambda: Around(nn.BatchNorm3d(4), (4, 2, 2, 4)),
    "SyncBatchNorm": lambda: Around(nn.SyncBatchNorm(4)),
    "InstanceNorm1d": lambda: Around(nn.InstanceNorm1d(4, track_running_stats=True), (4, 16)),
    "InstanceNorm2d": lambda: Around(nn.InstanceNorm2d(4, track_running_stats=True)),
    "InstanceNorm3d": lambda: Around(nn.InstanceNorm3d(4, track_running_stats=True), (4, 2, 2, 4)),
    "GroupNorm": lambda: Around(nn.GroupNorm(2, 4)),
    "LayerNorm": lambda: Around(nn.LayerNorm(64), (64,)),
    "Dropout": lambda: Around(nn.Dropout(0.5)),
    "AlphaDropout": lambda: Around(nn.AlphaDropout(0.5)),
    "Dropout2d": lambda: Around(nn.Dropout2d(0.5)),
    "RReLU": lambda: Around(nn.RReLU()),
    "LSTM": lambda: Around(nn.LSTM(16, 8, batch_first=True), (4, 16)),
    "GRU": lambda: Around(nn.GRU(16, 8, batch_first=True), (4, 16)),
    "RNN": lambda: Around(nn.RNN(16, 8, batch_first=True), (4, 16)),
    "TransformerEncoderLayer": lambda: Around(nn.TransformerEncoderLayer(16, 2, 16), (4, 16)),
    "PReLU": lambda: Around(nn.PReLU()),
    "Conv2d": lambda: Around(nn.Conv2d(4, 4, 3)),
    "ConvTranspose2d": lambda: Around(nn.ConvTranspose2d(4, 4, 3)),
    "Bilinear": lambda: Around(nn.Sequential(nn.Linear(64, 8), nn.Softplus()), (64,)),
    "spectral norm": lambda: Around(spectral_norm(nn.Linear(64, 16)), (64,)),
    "scripted batch norm": lambda: Around(scripted(nn.BatchNorm2d(4))),
    "scripted statistics": lambda: Around(scripted(nn.InstanceNorm2d(4, track_running_stats=True))),
    "running statistics": lambda: Around(Statistics()),
    "membrane": lambda: Around(Membrane()),
    "meddling": lambda: Around(Meddles()),
    "writes into its input": WritesIntoItsInput,
    "our own": lambda: own(),
}
VERBS: dict[str, Callable[[nn.Module, Tensor, Tensor], object]] = {
    "pgd": lambda m, x, y: sg.pgd(m, x, y, THREAT, steps=2, restarts=1),
    "fgsm": lambda m, x, y: sg.fgsm(m, x, y, THREAT),
    "bpda": lambda m, x, y: sg.pgd(m, x, y, THREAT, steps=1, gradient=BPDA(Atan(4.0))),
    "swapped": lambda m, x, y: sg.pgd(m, x, y, THREAT, steps=1, gradient=SwapSurrogate(Atan(4.0))),
    "sapgd": lambda m, x, y: sg.sapgd(m, x, y, THREAT, steps=2, gradient=ASSG()),
    "apgd": lambda m, x, y: sg.apgd(m, x, y, THREAT, steps=2),
    "apgd_targeted": lambda m, x, y: sg.apgd_targeted(m, x, y, THREAT, steps=2, targets=1),
    "targeted": lambda m, x, y: sg.targeted(m, x, y, THREAT, steps=2, targets=1),
    "cw": lambda m, x, y: sg.cw(m, x, y, sg.L2(1.0), steps=2),
    "fab": lambda m, x, y: sg.fab(m, x, y, THREAT, steps=2),
    "square": lambda m, x, y: sg.square(m, x, y, THREAT, queries=2),
    "rays": lambda m, x, y: sg.rays(m, x, y, THREAT, queries=3),
    "random_search": lambda m, x, y: sg.random_search(m, x, y, THREAT, queries=2),
    "block_search": lambda m, x, y: sg.attacks.block_search(m, x, y, THREAT, queries=2),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]()
    if name != "our own":
        model(torch.rand(N, 1, SIDE, SIDE))  # lazy layers get their shapes
    for k, module in enumerate(model.modules()):
        if name not in ("our own", "meddling") and not isinstance(module, torch.jit.ScriptModule):
            module.training = bool(k % 2)  # modes as no call of train() or eval() leaves them
    return model


def held(model: nn.Module) -> dict[str, object]:
    """All that must not change, tensors as bytes."""

    def frozen(value: object) -> object:
        if isinstance(value, Tensor):
            return value.detach().numpy().tobytes(), value.requires_grad, value.is_leaf, value.grad
        if isinstance(value, dict):
            return {k: frozen(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [frozen(v) for v in value]
        return frozen(vars(value)) if isinstance(value, Helper) else value

    state: dict[str, object] = {
        f"{name} {kind}": frozen(t)
        for kind in ("parameters", "buffers")
        for name, t in getattr(model, f"named_{kind}")()
    }
    for name, module in model.named_modules():
        state[f"{name} mode"] = module.training
        attributes = {k: v for k, v in vars(module).items() if k in ("v", "history", "memories", "helper")}
        state[f"{name} attributes"] = copy.copy(frozen(attributes))
        hooks = {k: list(v) for k, v in vars(module).items() if "hooks" in k and isinstance(v, dict)}
        state[f"{name} hooks"] = hooks
    state["random"] = (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
    state["type"] = torch.get_default_dtype()
    return state


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(MODELS)), ids=list(MODELS))
def test_every_model_is_the_same_to_the_bit_afterwards(number: int) -> None:
    """Each kind of model under four of the verbs, so that every verb meets several kinds."""
    name, verbs = list(MODELS)[number], list(VERBS)
    chosen = {verbs[(number + k) % len(verbs)] for k in (0, 4, 9)} | {"bpda"}
    for verb in sorted(chosen):
        model = made(name)
        x, y = torch.rand(N, 1, SIDE, SIDE), torch.arange(N) % CLASSES
        images, labels, before = x.clone(), y.clone(), held(model)
        VERBS[verb](model, x, y)
        after = held(model)
        assert {k for k in before if before[k] != after[k]} == set(), verb
        assert before.keys() == after.keys(), verb
        assert torch.equal(x, images), verb
        assert torch.equal(y, labels), verb


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["scripted batch norm", "meddling", "membrane"])
def test_an_audit_leaves_nothing_behind(name: str) -> None:
    model = made(name)
    x, y = torch.rand(N, 1, SIDE, SIDE), torch.arange(N) % CLASSES
    images, before = x.clone(), held(model)
    sg.audit(model, x, y, THREAT, effort="quick")
    after = held(model)
    assert {k for k in before if before[k] != after[k]} == set()
    assert torch.equal(x, images)


def test_a_diagnosis_leaves_nothing_behind() -> None:
    model = own()
    x = torch.rand(2, 1, SIDE, SIDE)
    before = held(model)
    neighbors(model, x)
    assert held(model) == before


def test_every_attack_is_among_the_verbs() -> None:
    same = {"bim", "rfgsm", "noise", "random_noise", "pgd_l2", "mifgsm"}  # the loop of pgd
    named = {attack.function.__name__ for attack in ATTACKS.values()}
    assert named - same - {"fgsm"} <= set(VERBS)


@pytest.mark.filterwarnings("ignore:.*carries state")
def test_a_function_around_a_model_is_guarded_as_well() -> None:
    model = made("running statistics")
    x, y = torch.rand(N, 1, SIDE, SIDE), torch.arange(N) % CLASSES
    before = held(model)
    sg.pgd(lambda images: model(images), x, y, THREAT, steps=2, restarts=1)
    assert held(model) == before


def test_an_exception_of_the_model_leaves_nothing_behind() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.count = Around(Statistics()), 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            logits: Tensor = self.inner(x)
            return F.relu(logits) if self.count < 6 else torch.zeros(0).sum(3)

    model, x = Fails(), torch.rand(N, 1, SIDE, SIDE)
    model(x)
    before = held(model)
    with pytest.raises(Exception):  # noqa: B017, PT011
        sg.pgd(model, x, torch.arange(N) % CLASSES, THREAT, steps=9)
    assert held(model) == before
