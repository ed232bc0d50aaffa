"""State that a model keeps anywhere is the same to the bit after a measurement."""

import random
import threading
import warnings
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.gradients import SwapSurrogate
from spikeguard.surrogates import Atan

THREAT = sg.Linf(0.1)
KEPT: dict[str, Tensor] = {"v": torch.zeros(2)}
SEEN: list[Tensor] = [torch.zeros(2)]


class Base(nn.Module):
    """Images [N, 1, 4, 4] to logits; ``keep`` changes what ``state`` reports."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 4)
        self.prepare()

    def prepare(self) -> None: ...

    def keep(self, z: Tensor) -> None: ...

    def state(self) -> object: ...

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.first(x.flatten(1)))
        self.keep(z.detach())
        logits: Tensor = self.last(z)
        return logits


class InDeque(Base):
    def prepare(self) -> None:
        self.held: deque[Tensor] = deque([torch.zeros(2)], maxlen=3)

    def keep(self, z: Tensor) -> None:
        self.held[0].add_(1)
        self.held.append(z)

    def state(self) -> object:
        return list(self.held)


class InArrays(Base):
    def prepare(self) -> None:
        self.held, self.parts = np.zeros(2), [np.zeros(2)]

    def keep(self, z: Tensor) -> None:
        self.held = self.held + 1
        self.parts[0][:] = 2
        self.parts.append(z.numpy())

    def state(self) -> object:
        return [self.held, *self.parts]


class Slotted:
    __slots__ = ("v",)

    def __init__(self) -> None:
        self.v = torch.zeros(2)

    def __call__(self, z: Tensor) -> None:
        self.v = z


class InObjects(Base):
    def prepare(self) -> None:
        self.slotted, self.local = Slotted(), threading.local()
        self.local.v = torch.zeros(2)
        self.deep = SimpleNamespace(a=SimpleNamespace(b=[{"c": (torch.zeros(2),)}]))

    def keep(self, z: Tensor) -> None:
        self.slotted(z)
        self.local.v = z
        self.deep.a.b[0]["c"][0].add_(1)

    def state(self) -> object:
        return [self.slotted.v, self.local.v, self.deep.a.b[0]["c"][0]]


class InClosure(Base):
    def prepare(self) -> None:
        v, held = torch.zeros(2), {"v": torch.zeros(2)}

        def write(z: Tensor) -> None:
            nonlocal v
            v = held["v"] = z

        self.write = write
        self.read: Callable[[], list[Tensor]] = lambda: [v, held["v"]]

    def keep(self, z: Tensor) -> None:
        self.write(z)

    def state(self) -> object:
        return self.read()


class InClass(Base):
    held: ClassVar[Tensor] = torch.zeros(2)
    log: ClassVar[list[Tensor]] = []

    def keep(self, z: Tensor) -> None:
        InClass.held = z
        InClass.log.append(z)

    def state(self) -> object:
        return [InClass.held, *InClass.log]


class InGlobals(Base):
    def keep(self, z: Tensor) -> None:
        KEPT["v"] = z
        SEEN.append(z)

    def state(self) -> object:
        return [KEPT["v"], *SEEN]


class InHook(Base):
    def prepare(self) -> None:
        held = torch.zeros(2)

        def count(*_: object) -> None:
            held.add_(1)

        self.last.register_forward_hook(count)
        self.read: Callable[[], list[Tensor]] = lambda: [held]

    def state(self) -> object:
        return self.read()


class Generators(Base):
    def prepare(self) -> None:
        self.torch, self.numpy = torch.Generator().manual_seed(1), np.random.default_rng(1)
        self.plain = random.Random(1)

    def keep(self, z: Tensor) -> None:
        torch.rand(2, generator=self.torch)
        self.numpy.random()
        self.plain.random()

    def state(self) -> object:
        return [self.torch.get_state(), str(self.numpy.bit_generator.state), str(self.plain.getstate())]


class Buffers(Base):
    """Of types that few operations take."""

    sparse: Tensor

    def prepare(self) -> None:
        for name, dtype in (("i", torch.int8), ("c", torch.complex64), ("b", torch.bfloat16)):
            self.register_buffer(name, torch.zeros(2, dtype=dtype))
        self.register_buffer("nan", torch.full((2,), torch.nan))
        self.register_buffer("sparse", torch.eye(2).to_sparse())

    def keep(self, z: Tensor) -> None:
        for name in ("i", "c", "b", "nan"):
            getattr(self, name).add_(1)
        self.sparse = 2 * self.sparse

    def state(self) -> object:
        return [str(b.to_dense()) for b in self.buffers()]


class Process(Base):
    def keep(self, z: Tensor) -> None:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_float32_matmul_precision("medium")
        torch.autograd.set_detect_anomaly(True)
        torch.backends.cudnn.benchmark = True
        warnings.simplefilter("ignore")
        np.seterr(all="ignore")
        torch.set_grad_enabled(torch.is_grad_enabled())

    def state(self) -> object:
        settings: list[Any] = [torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()]
        settings += [torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, np.geterr()]
        return [*settings, torch.is_grad_enabled(), len(warnings.filters)]


class Gradients(Base):
    def prepare(self) -> None:
        self.first.weight.grad = torch.ones_like(self.first.weight)

    def keep(self, z: Tensor) -> None:
        with torch.enable_grad():
            self.first.weight.sum().backward()

    def state(self) -> object:
        return [self.first.weight.grad, self.last.weight.grad]


KINDS: list[Callable[[], Base]] = [
    *(InDeque, InArrays, InObjects, InClosure, InClass, InGlobals, InHook),
    *(Generators, Buffers, Process, Gradients),
]


def frozen(value: object) -> object:
    if isinstance(value, list):
        return [frozen(v) for v in value]
    if isinstance(value, Tensor):
        return value.detach().numpy().tobytes()
    return value.tobytes() if isinstance(value, np.ndarray) else value


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_keeps_anywhere_is_put_back(kind: Callable[[], Base]) -> None:
    model, x, y = kind(), torch.rand(4, 1, 4, 4), torch.arange(4)
    before = frozen(model.state())
    sg.pgd(model, x, y, THREAT, steps=1, restarts=1, gradient=SwapSurrogate(Atan(2.0)))
    assert frozen(model.state()) == before


def test_a_counter_counts() -> None:
    """Numbers and texts go on: people count the calls of their models."""
    model = Base()
    calls: list[int] = []
    sg.fgsm(lambda x: calls.append(len(x)) or model(x), torch.rand(4, 1, 4, 4), torch.arange(4), THREAT)  # type: ignore[func-returns-value]
    assert calls


def test_a_log_outside_of_a_model_stays() -> None:
    """A list that held no tensor is what the user fills with a hook of theirs."""
    model, log = Base(), list[Tensor]()
    model.first.register_forward_hook(lambda _module, _inputs, z: log.append(z.detach()))
    sg.fgsm(model, torch.rand(4, 1, 4, 4), torch.arange(4), THREAT)
    assert log


def test_a_model_whose_layers_have_no_shape_yet() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(sg.UserError, match="lazy layers"):
        sg.fgsm(model, torch.rand(4, 1, 4, 4), torch.arange(4), THREAT)
