"""The C++ layer against the readable one: batch norm, neurons, noise, band and pooling in one pass."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from narrow import present
from outputs import Reset, Site
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.kernels import compiler, cpp, cpp_build, equation
from spikeguard.kernels.layout import Layout
from spikeguard.kernels.mode import Band, LayerOutput, Mode, NoiseKeys, Norm
from spikeguard.kernels.running import adapt
from spikeguard.neurons import Neuron, Spiking
from spikeguard.neurons.modifiers import Chain, Dynamics, Homeostasis
from spikeguard.random import draws
from spikeguard.surrogates import (
    Atan,
    Exponential,
    Gaussian,
    Rectangle,
    Sigmoid,
    StraightThrough,
    Surrogate,
    Triangle,
)

SURROGATES = [
    Triangle(0.7),
    Atan(2.0),
    Sigmoid(4.0),
    Gaussian(0.5),
    Rectangle(1.0),
    Exponential(2.0, 0.3),
    StraightThrough(),
]


@pytest.fixture(autouse=True)
def native_path(quiet_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of any size take the C++ path, and have to, on two threads."""
    torch.set_num_threads(2)
    assert cpp_build.verdict() == (True, ""), "the C++ path cannot be built here: it went untested"
    monkeypatch.setattr(compiler, "WORTHWHILE", 0)


def channels_last(x: Tensor) -> Tensor:
    found: Tensor = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    return found


def inside(norm: nn.BatchNorm2d) -> Norm:
    """The norm as the C++ layer takes it."""
    return Norm(
        norm.weight,
        norm.bias,
        present(norm.running_mean),
        present(norm.running_var),
        norm.eps,
        present(norm.momentum),
        norm.training,
    )


def both(
    current: Tensor,
    mode: Mode,
    sigma: float = 0.0,
    sharpness: Tensor | None = None,
    pool: bool = False,
    norm: nn.BatchNorm2d | None = None,
) -> list[tuple[LayerOutput, tuple[Tensor, ...], nn.BatchNorm2d | None]]:
    """Outputs and all gradients of both paths for one random loss."""
    keys = draws.step_keys(7, torch.arange(current.shape[1]), mode.timesteps)
    results = []
    for fast in (False, True):
        leaf = current.clone().requires_grad_()
        decay, threshold = torch.tensor(0.6, requires_grad=True), torch.tensor(1.1, requires_grad=True)
        leaves = [leaf, decay, threshold]
        own = nn.BatchNorm2d(current.shape[2]).train(norm.training) if norm is not None else None
        if own is not None and norm is not None:
            own.load_state_dict(norm.state_dict())
            leaves += [own.weight, own.bias]
        draw = NoiseKeys(sigma, keys) if sigma else None
        if fast:
            asked = None if own is None else inside(own)
            got = cpp.integrate(leaf, decay, threshold, cpp.Call(mode, asked, draw, sharpness, True, pool))
        else:
            x = leaf if own is None else own(leaf.flatten(0, 1)).unflatten(0, leaf.shape[:2])
            layout = Layout.of(current)
            count = math.prod(layout.sizes[1:])
            noise = (
                layout.full(draws.normal(keys, count, mode.timesteps).mul(sigma).reshape(mode.timesteps, -1))
                if sigma
                else None
            )
            got = equation.integrate(x, decay, threshold, mode, noise, sharpness)
            if pool:
                got = got._replace(
                    spikes=F.avg_pool2d(got.spikes.flatten(0, 1), 2).unflatten(0, got.spikes.shape[:2])
                )
        generator = torch.Generator().manual_seed(1)
        loss = (got.spikes * torch.randn(got.spikes.shape, generator=generator)).sum() + (
            present(got.u) * torch.randn(present(got.u).shape, generator=generator)
        ).sum() / 9
        if got.penalty is not None:
            loss = loss + 50 * got.penalty
        results.append((got, torch.autograd.grad(loss, leaves), own))
    return results


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(a.detach().abs().max().clamp(min=1e-6)))


Case = tuple[int, Reset, bool, Site, Band | None, bool, str, bool, bool]
CASES: list[Case] = [  # steps, reset, detach, site, band, constant, layout, pool, sharp
    (4, "hard", True, "compare", Band(0.5), False, "last", True, False),
    (5, "soft", False, "membrane", Band(0.5, "below"), False, "last", False, True),
    (4, "hard", False, "compare", None, True, "last", True, False),
    (3, "soft", True, "compare", Band(0.3), False, "first", False, False),
    (1, "hard", False, "compare", None, True, "first", False, True),
    (4, "hard", False, "membrane", Band(0.5), False, "linear", False, False),
    (4, "hard", False, "band", Band(0.5), False, "last", True, True),
]
LAYERS: list[tuple[Case, Surrogate]] = [(case, Atan(2.0)) for case in CASES]
LAYERS += [(case, s) for case in CASES[:2] for s in SURROGATES if s != Atan(2.0)]


@pytest.mark.parametrize(("case", "surrogate"), LAYERS, ids=lambda v: getattr(type(v), "__name__", ""))
def test_native_layer_equals_the_readable_one(case: Case, surrogate: Surrogate) -> None:
    """Spikes, potentials and noise to the bit; gradients to float32 rounding.

    Sizes that fill no vector, odd borders under the pool. Each combination is compiled, which takes a second:
    one surrogate in every case, every surrogate in two.
    """
    steps, reset, detach, site, band, constant, layout, pool, sharp = case
    shape = (1 if constant else steps, 3, *((37,) if layout == "linear" else (19, 7, 5)))
    current = torch.randn(shape) + 0.5
    if layout == "last":
        current = channels_last(current)
    mode = Mode(steps, surrogate, reset, detach, 0.1, site, False, band, 0.25)
    sharpness = 1 + torch.rand(steps, *shape[1:]) if sharp else None
    (a, a_grads, _), (b, b_grads, _) = both(current, mode, 0.3, sharpness, pool)
    assert a.spikes.any()
    assert torch.equal(a.spikes, b.spikes)
    assert torch.equal(present(a.u), present(b.u))
    if band:
        close(present(a.penalty), present(b.penalty), 1e-6)
    close(a_grads[0], b_grads[0], 2e-6)
    for x, y in zip(a_grads[1:], b_grads[1:], strict=True):  # long sums, in another order
        close(x, y, 3e-4)


@pytest.mark.parametrize(
    ("decays", "moves"), [("each sample", False), ("all samples", False), (None, True), ("all samples", True)]
)
@pytest.mark.parametrize(
    ("reset", "detach", "constant", "layout"),
    [("hard", True, False, "last"), ("soft", False, True, "last"), ("hard", False, False, "first")],
)
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "noise, pool, one gradient"])
def test_own_decays_and_moving_thresholds_equal_the_readable_loop(
    decays: str | None, moves: bool, reset: Reset, detach: bool, constant: bool, layout: str, plain: bool
) -> None:
    """Every neuron with a decay and a threshold of its own.

    Spikes and potentials to the bit, all gradients to float32 rounding.
    """
    steps, shape = 4, (3, 19, 7, 5)
    current = torch.randn(1 if constant else steps, *shape) + 0.5
    if layout == "last":
        current = channels_last(current)
    mode = Mode(steps, Atan(2.0), reset, detach, 0.1, band=Band(0.4))
    drawn = {
        "each sample": torch.rand(steps, *shape),
        "all samples": torch.rand(steps, 1, *shape[1:]),
        None: torch.tensor(0.6),
    }[decays]
    rates, goal = 0.4 * torch.rand(shape[1:]), torch.randn(steps, *shape[1:])
    results = []
    for fast in (False, True):
        leaves = [
            v.clone().requires_grad_()
            for v in (current, drawn, torch.tensor(1.1), *([rates] if moves else []))
        ]
        moving = Homeostasis(leaves[3], goal) if moves else None
        keys = draws.step_keys(7, torch.arange(shape[0]), steps)
        draw, pool = (None, False) if plain else (NoiseKeys(0.3, keys), layout == "last")
        if fast:
            got = cpp.integrate(
                leaves[0], leaves[1], leaves[2], cpp.Call(mode, None, draw, None, True, pool, moving)
            )
        else:
            order = Layout.of(current)
            noise = (
                None
                if plain
                else order.full(draws.normal(keys, math.prod(shape[1:]), steps).mul(0.3).reshape(steps, -1))
            )
            got = equation.integrate(leaves[0], leaves[1], leaves[2], mode, noise, moving=moving)
            if pool:
                got = got._replace(
                    spikes=F.avg_pool2d(got.spikes.flatten(0, 1), 2).unflatten(0, got.spikes.shape[:2])
                )
        generator = torch.Generator().manual_seed(1)
        parts = (got.spikes, present(got.u) / 9)
        weighted = [(v * torch.randn(v.shape, generator=generator)).sum() for v in parts]
        loss = weighted[0] + weighted[1] + 50 * present(got.penalty)
        asked = leaves if plain else [leaves[0], leaves[-1] if moves else leaves[1]]
        results.append((got, torch.autograd.grad(loss, asked)))
    (a, a_grads), (b, b_grads) = results
    assert a.spikes.any()
    assert torch.equal(a.spikes, b.spikes)
    assert torch.equal(present(a.u), present(b.u))
    for x, y in zip(a_grads, b_grads, strict=True):
        assert x.shape == y.shape
        close(x, y, 3e-4 if x.dim() == 0 else 5e-6)


def test_the_gradient_of_a_threshold_goal_is_that_of_the_readable_loop() -> None:
    """The C++ pass has none: such a layer does without it."""
    layer, current = Spiking(Neuron(decay=0.5, surrogate=Atan(2.0))), torch.randn(4, 2, 19, 7, 5) + 0.5
    gradients = []
    for large in (2**62, 1):
        goal = torch.zeros(4, 19, 7, 5, requires_grad=True)

        class Moves(Dynamics):
            def homeostasis(self, goal: Tensor = goal) -> Homeostasis:
                return Homeostasis(torch.full((19, 7, 5), 0.3), goal)

        layer.dynamics = Chain([Moves()])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiler, "WORTHWHILE", large)
            spikes = layer(current)
        gradients.append(torch.autograd.grad((spikes * current).sum(), goal)[0])
    assert gradients[0].any()
    assert torch.equal(*gradients)


@pytest.mark.parametrize(("samples", "count", "steps"), [(5, 37, 4), (1, 3, 1), (3, 256, 5)])
def test_random_numbers_are_the_same_to_the_bit_without_a_compiler(
    samples: int, count: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, numbers = draws.step_keys(7, torch.arange(samples) + 2**33, steps), torch.arange(samples)
    fast = draws.normal(keys, count, steps), draws.uniform(11, numbers, count)
    monkeypatch.setattr(compiler, "WORTHWHILE", 2**62)
    assert torch.equal(fast[0], draws.normal(keys, count, steps))
    assert torch.equal(fast[1], draws.uniform(11, numbers, count))
    assert len(fast[0].unique()) > 0.9 * fast[0].numel()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["last", "first"])
@pytest.mark.parametrize("constant", [True, False])
def test_norm_inside_equals_batch_norm_outside(training: bool, layout: str, constant: bool) -> None:
    norm = nn.BatchNorm2d(19).train(training)
    with torch.no_grad():
        for value in (norm.weight, norm.bias, present(norm.running_mean)):
            value.copy_(torch.rand(19) + 0.3)
        present(norm.running_var).copy_(torch.rand(19) + 0.5)
    current = 2 * torch.randn(1 if constant else 4, 30, 19, 7, 5) + torch.arange(19.0).view(19, 1, 1) / 3
    if layout == "last":
        current = channels_last(current)
    pool = layout == "last"
    mode = Mode(
        4, StraightThrough(), "soft", False, 0.0
    )  # its gradient does not jump where rounding turns a spike
    (a, a_grads, a_norm), (b, b_grads, b_norm) = both(current, mode, 0.0, None, pool, norm)
    assert float((a.spikes != b.spikes).float().mean()) < 1e-4
    close(present(a.u), present(b.u), 0.3 if (a.spikes != b.spikes).any() else 1e-5)
    for x, y in zip(a_grads, b_grads, strict=True):
        close(x, y, 2e-4)
    a_held, b_held = (inside(present(norm)) for norm in (a_norm, b_norm))
    close(a_held.running_mean, b_held.running_mean, 1e-6)
    close(a_held.running_var, b_held.running_var, 1e-6)


def test_statistics_of_a_channel_far_from_zero_keep_their_digits() -> None:
    current = channels_last(1000 + torch.randn(4, 64, 8, 16, 16))
    norm = nn.BatchNorm2d(8, momentum=1.0)
    cpp.integrate(
        current,
        torch.tensor(0.5),
        torch.tensor(1.0),
        cpp.Call(
            Mode(4, Triangle()),
            inside(norm),
        ),
    )
    exact = current.double().flatten(0, 1)
    close(exact.mean((0, 2, 3)), present(norm.running_mean).double(), 1e-6)
    close(exact.var((0, 2, 3)), present(norm.running_var).double(), 2e-4)


def test_bfloat16_computes_in_float32_and_rounds_once() -> None:
    current = channels_last(torch.randn(4, 5, 19, 6, 6)).bfloat16()
    mode = Mode(4, Atan(2.0), "hard", True, 0.0, "compare", False, Band(0.5))
    results = []
    for leaf in (current.clone().requires_grad_(), current.float().requires_grad_()):
        got = cpp.integrate(
            leaf, torch.tensor(0.5), torch.tensor(1.0), cpp.Call(mode, want_u=True, pool=True)
        )
        results.append(
            (got, torch.autograd.grad(got.spikes.float().sum() + 9 * present(got.penalty), leaf)[0])
        )
    (half, g_half), (full, g_full) = results
    assert half.spikes.dtype == g_half.dtype == torch.bfloat16
    assert torch.equal(half.spikes.float(), full.spikes), "quarters are exact in bfloat16"
    assert torch.equal(present(half.u), present(full.u))
    assert torch.equal(g_half, g_full.bfloat16())


def test_not_a_number_stays_one() -> None:
    current = torch.ones(2, 3, 8).bfloat16()
    current[0, 0, 0] = float("nan")
    leaf = current.requires_grad_()
    got = cpp.integrate(leaf, torch.tensor(0.5), torch.tensor(1.0), cpp.Call(Mode(2, Atan(2.0)), want_u=True))
    assert torch.isnan(present(got.u)[0, 0, 0])
    assert torch.isnan(torch.autograd.grad(got.spikes.sum(), leaf)[0][0, 0, 0])


def test_sharpness_may_follow_from_the_potentials_of_the_same_pass() -> None:
    current = channels_last(torch.randn(3, 2, 9, 4, 4))
    mode, scalars = Mode(3, Atan(2.0)), (torch.tensor(0.5), torch.tensor(1.0))
    found = []
    for sharpness in (
        lambda u: 1 + u.abs(),
        1 + present(cpp.integrate(current, *scalars, cpp.Call(mode, want_u=True)).u).abs(),
    ):
        leaf = current.clone().requires_grad_()
        got = cpp.integrate(leaf, *scalars, cpp.Call(mode, sharpness=sharpness))
        found.append(torch.autograd.grad((got.spikes * torch.arange(9.0).view(9, 1, 1)).sum(), leaf)[0])
    assert torch.equal(*found)
    assert found[0].any()


def test_running_sharpness_is_the_same_on_both_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    u, fast, slow = torch.randn(40), (torch.ones(40), torch.zeros(40)), (torch.ones(40), torch.zeros(40))
    for _ in range(3):
        adapt(u, *fast)
    monkeypatch.setattr(compiler, "WORTHWHILE", 2**62)
    for _ in range(3):
        adapt(u, *slow)
    assert torch.equal(fast[0], slow[0])
    torch.testing.assert_close(fast[1], slow[1])


def test_sums_do_not_depend_on_anything_but_the_number_of_threads() -> None:
    current = channels_last(torch.randn(4, 32, 20, 16, 16))
    norm = nn.BatchNorm2d(20)

    def gradients() -> tuple[Tensor, ...]:
        leaf = current.clone().requires_grad_()
        got = cpp.integrate(
            leaf,
            torch.tensor(0.5),
            torch.tensor(1.0),
            cpp.Call(Mode(4, Triangle(), band=Band(0.5)), inside(norm)),
        )
        return torch.autograd.grad(
            (got.spikes**2).sum() + present(got.penalty), (leaf, norm.weight, norm.bias)
        )

    first = gradients()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))


def test_unknown_formulas_hooks_and_double_precision_take_the_other_path() -> None:
    class Mine(Triangle):
        def shape(self, z: Tensor) -> Tensor:
            return super().shape(z) * 2

    x = torch.randn(2, 3, 4)
    assert cpp.can(x, Mode(2, Triangle()), 1)
    assert not cpp.can(x, Mode(2, Mine()), 1)
    assert not cpp.can(x, Mode(2, Triangle(), smooth=True), 1)
    assert not cpp.can(x.double(), Mode(2, Triangle()), 1)
    seen = []
    norm = nn.BatchNorm2d(3)
    fire = Spiking(sg.Neuron(), norm=norm)
    norm.register_forward_hook(lambda *a: seen.append(1))
    fire(torch.randn(2, 4, 3, 8, 8))
    assert seen, "a hook on the norm was passed over"


def test_networks_agree_on_both_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training step and an attack's gradient of every network, with noise and band.

    The same up to float32 rounding.
    """
    from spikeguard.kernels.mode import Band
    from spikeguard.neurons import Noise, seed_noise, spiking

    for name, options in (("small", {"width": 5}), ("vgg11", {"hidden": (40, 30)}), ("wrn16", {"widen": 1})):
        found = []
        for size in (0, 2**62):
            monkeypatch.setattr(compiler, "WORTHWHILE", size)
            net = sg.build(
                name,
                classes=10,
                in_shape=(3, 16, 16),
                timesteps=3,
                neuron=sg.Neuron(decay=0.5, surrogate=Sigmoid(1.0)),
                **options,
            )
            for layer in spiking(net).values():
                layer.noise = Noise(0.1)
            seed_noise(net, 3)
            x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
            with sg.tap(net, band=Band(0.5)) as opened:
                loss = (
                    F.cross_entropy(net(x), torch.arange(8))
                    + 0.1 * torch.stack(list(opened.penalties.values())).sum()
                )
            parameters = list(net.parameters())
            found.append(
                (float(loss.detach()), torch.autograd.grad(loss, [x, *parameters]), net.state_dict())
            )
        (loss_a, a, state_a), (loss_b, b, state_b) = found
        assert abs(loss_a - loss_b) < 5e-3
        cosine = [
            float(F.cosine_similarity(p.flatten(), q.flatten(), 0))
            for p, q in zip(a, b, strict=True)
            if float(p.norm()) > 1e-6
        ]
        assert min(cosine) > 0.95, (name, min(cosine))
        assert [
            k
            for k, v in state_a.items()
            if not torch.allclose(v.float(), state_b[k].float(), rtol=1e-2, atol=1e-3)
        ] == []


def test_a_compiler_that_breaks_down_is_asked_for_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for g++ that fails at -O3, as some do on single combinations.

    The layer is built all the same, to the same bits.
    """
    fake = tmp_path / "g++"
    fake.write_text(
        '#!/bin/sh\ncase "$*" in *-O3*) echo "internal compiler error" >&2; exit 1;; esac\nexec '
        f'{shutil.which("g++")} "$@"\n'
    )
    fake.chmod(0o755)
    current = channels_last(torch.randn(3, 4, 19, 6, 6))
    found = []
    for path in (None, fake):
        if path:
            monkeypatch.setenv("CXX", str(path))
            monkeypatch.setenv("SPIKEGUARD_CACHE", str(tmp_path / "cache"))
            for cached in (cpp_build.folder, cpp_build._library, cpp_build.function, cpp_build._target):
                cached.cache_clear()
        leaf = current.clone().requires_grad_()
        got = cpp.integrate(
            leaf, torch.tensor(0.5), torch.tensor(1.0), cpp.Call(Mode(3, Atan(2.0)), want_u=True)
        )
        u = present(got.u)
        found.append((got.spikes, u, torch.autograd.grad(u.square().sum() + got.spikes.sum(), leaf)[0]))
    assert list((tmp_path / "cache" / "kernels").glob("*.so"))
    for cached in (cpp_build.folder, cpp_build._library, cpp_build.function, cpp_build._target):
        cached.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_machine_without_compiler_says_so_and_goes_on(tmp_path: Path) -> None:
    code = (
        "import torch, spikeguard as sg; from spikeguard.kernels import cpp_build; "
        "print(cpp_build.verdict()); sg.LIF()(torch.rand(4, 90, 1000)).sum()"
    )
    environment = {**os.environ, "CXX": "no-such-compiler", "SPIKEGUARD_CACHE": str(tmp_path)}
    got = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert got.returncode == 0, got.stderr
    assert "no C++ compiler found (g++" in got.stdout


@pytest.mark.skipif(os.name == "nt", reason="permissions")
def test_a_cache_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPIKEGUARD_CACHE", str(tmp_path / "file"))
    cpp_build.folder.cache_clear()
    try:
        assert os.access(cpp_build.folder(), os.W_OK)
        assert cpp_build.folder().parent != tmp_path / "file"
    finally:
        cpp_build.folder.cache_clear()


def new_cache(monkeypatch: pytest.MonkeyPatch, folder: Path, compiler_path: Path | None = None) -> None:
    """Forget what this process has built, and build into another folder, by another compiler."""
    monkeypatch.setenv("SPIKEGUARD_CACHE", str(folder))
    if compiler_path:
        monkeypatch.setenv("CXX", str(compiler_path))
        monkeypatch.setattr(compiler, "verdict", lambda device="cpu": (False, "too slow for a test"))
    forget()


def forget() -> None:
    for cached in (
        cpp_build.folder,
        cpp_build._library,
        cpp_build.function,
        cpp_build._target,
        cpp_build._probed,
    ):
        cached.cache_clear()
    cpp_build._failed.clear()


SMALLEST = {"STEPS": 1, "CONSTANT": 0, "BFLOAT16": 0, "INNER": 0}


@pytest.mark.parametrize("damage", ["truncated", "empty", "another"])
def test_a_damaged_library_is_built_again_and_never_loaded(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_cache(monkeypatch, tmp_path)
    try:
        cpp_build.function("adapt", cpp_build.SMALL, "u", **SMALLEST)
        (library,) = (tmp_path / "kernels").glob("*.so")
        whole = library.read_bytes()
        library.unlink()  # this process has it in memory
        library.write_bytes({"truncated": whole[:5000], "empty": b"", "another": b"x" + whole}[damage])
        forget()
        cpp_build.function("adapt", cpp_build.SMALL, "u", **SMALLEST)
        (again,) = (tmp_path / "kernels").glob("*.so")
        assert len(again.read_bytes()) == len(whole)
        assert not [p for p in (tmp_path / "kernels").iterdir() if p.suffix != ".so"]
    finally:
        monkeypatch.undo()
        forget()


@pytest.mark.parametrize("dies", ["exit 1", "kill -SEGV $$"])
def test_a_compiler_that_fails_for_large_kernels_only_is_not_used(
    dies: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "g++"
    fake.write_text(f'#!/bin/sh\ncase "$*" in *PASS=1*) {dies};; *) exec {shutil.which("g++")} "$@";; esac\n')
    fake.chmod(0o755)
    new_cache(monkeypatch, tmp_path, fake)
    try:
        native, reason = cpp_build.verdict()
        assert not native
        assert "exit code" in reason
        assert sg.LIF()(torch.rand(2, 3, 5)).shape == (2, 3, 5)
    finally:
        monkeypatch.undo()
        forget()


def test_a_kernel_that_fails_later_is_computed_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = tmp_path / "g++"
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in *STEPS=7*) exit 1;; *) exec {shutil.which("g++")} "$@";; esac\n'
    )
    fake.chmod(0o755)
    current = torch.rand(7, 3, 5) * 2
    due = equation.integrate(current, torch.tensor(1.0), torch.tensor(1.0), Mode(7, Triangle())).spikes
    new_cache(monkeypatch, tmp_path, fake)
    try:
        assert cpp_build.verdict() == (True, "")
        assert torch.equal(sg.LIF()(current), due)
        assert not cpp_build.verdict()[0]
        assert "a kernel could not be built" in caplog.text
    finally:
        monkeypatch.undo()
        forget()
