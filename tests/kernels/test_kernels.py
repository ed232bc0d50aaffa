"""Neurons against a plain loop, against finite differences, and the fast kernel against the readable one."""

import itertools
import math
from functools import partial
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from narrow import present
from outputs import Kernel, Outcome, Reset, Site, assert_same
from torch import Tensor

from spikeguard.kernels import compiled, compiler, equation
from spikeguard.kernels.mode import Band, Mode
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
    Triangle(1.0),
    Triangle(0.5),
    Atan(2.0),
    Sigmoid(4.0),
    Gaussian(0.5),
    Rectangle(1.0),
    Exponential(2.0, 0.3),
    StraightThrough(),
]
SMOOTH = [Atan(2.0), Sigmoid(3.0), Gaussian(0.7)]
MODES = list(itertools.product(["hard", "soft"], [False, True], [0.0, 0.5], ["compare", "membrane"]))


def plain_loop(
    current: list[list[float]], decay: float, threshold: float, mode: Mode, noise: list[list[float]] | None
) -> tuple[list[list[float]], list[list[float]]]:
    """One neuron at a time in Python floats, written from the equation and from nothing of ours."""
    steps, count = mode.timesteps, len(current[0])
    spikes, potentials = [[0.0] * count for _ in range(steps)], [[0.0] * count for _ in range(steps)]
    for i in range(count):
        v = mode.v_init
        for t in range(steps):
            h = decay * v + current[t][i]
            if noise and mode.site == "membrane":
                h = h + noise[t][i]
            seen = h - threshold + noise[t][i] if noise and mode.site == "compare" else h - threshold
            fired = 1.0 if seen >= 0 else 0.0
            v = h * (1 - fired) if mode.reset == "hard" else h - threshold * fired
            spikes[t][i], potentials[t][i] = fired, h - threshold
    return spikes, potentials


def tied(shape: tuple[int, ...], seed: int) -> Tensor:
    """Currents on a coarse grid, so that many potentials meet the threshold exactly."""
    return torch.randint(-4, 9, shape, generator=torch.Generator().manual_seed(seed)).double() / 4


@pytest.mark.parametrize(("reset", "detach", "v_init", "site"), MODES)
@pytest.mark.parametrize("kernel", [equation.integrate, compiled.integrate])
@pytest.mark.parametrize("noisy", [False, True])
def test_spikes_equal_a_plain_loop_exactly_also_at_ties(
    kernel: Kernel, reset: Reset, detach: bool, v_init: float, site: Site, noisy: bool
) -> None:
    mode = Mode(5, Triangle(), reset, detach, v_init, site)
    current = torch.cat([tied((5, 40), 0), torch.randn(5, 40, dtype=torch.float64)], 1)
    noise = tied((5, 80), 1) / 2 if noisy else None
    decay, threshold = torch.tensor(0.5, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    got = kernel(current, decay, threshold, mode, noise)
    spikes, potentials = plain_loop(
        current.tolist(), 0.5, 1.0, mode, noise.tolist() if noise is not None else None
    )
    assert got.spikes.tolist() == spikes
    assert present(got.u).tolist() == potentials
    assert (present(got.u) == 0).any(), "no tie was tested"


def both(
    mode: Mode, current: Tensor, noise: Tensor | None, sharpness: Tensor | None, fast: bool
) -> tuple[Outcome, Outcome]:
    """Outputs and all gradients of both kernels for one random loss."""
    results: list[Outcome] = []
    kernels: tuple[Kernel, Kernel] = (equation.integrate, partial(compiled.integrate, compiled=fast))
    for kernel in kernels:
        leaf = current.clone().requires_grad_()
        decay = torch.tensor(0.6, dtype=current.dtype, requires_grad=True)
        threshold = torch.tensor(0.9, dtype=current.dtype, requires_grad=True)
        got = kernel(leaf, decay, threshold, mode, noise, sharpness)
        generator = torch.Generator().manual_seed(5)
        weight = torch.randn(got.spikes.shape, generator=generator, dtype=current.dtype)
        loss = (got.spikes * weight).sum() + (present(got.u) * weight.flip(0)).sum() * 0.3
        if got.penalty is not None:
            loss = loss + 7.0 * got.penalty
        results.append((got, torch.autograd.grad(loss, (leaf, decay, threshold))))
    first, second = results
    return first, second


@pytest.mark.parametrize(("reset", "detach", "v_init", "site"), MODES)
@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_hand_written_backward_equals_autograd(
    reset: Reset, detach: bool, v_init: float, site: Site, surrogate: Surrogate
) -> None:
    mode = Mode(4, surrogate, reset, detach, v_init, site, band=Band(0.5))
    noise = 0.2 * torch.randn(4, 3, 7, dtype=torch.float64)
    assert_same(*both(mode, torch.randn(4, 3, 7, dtype=torch.float64), noise, None, fast=False), 1e-12)


@pytest.mark.parametrize("side", ["both", "below"])
@pytest.mark.parametrize("constant", [False, True])
def test_band_sharpness_and_constant_current_equal_autograd(
    side: Literal["both", "below"], constant: bool
) -> None:
    mode = Mode(4, Atan(2.0), band=Band(0.4, side))
    current = torch.randn(1 if constant else 4, 3, 7, dtype=torch.float64)
    sharpness = 1 + torch.rand(4, 3, 7, dtype=torch.float64)
    assert_same(*both(mode, current, None, sharpness, fast=False), 1e-12)


@pytest.mark.parametrize(
    ("reset", "detach", "site", "constant"),
    [("hard", False, "compare", False), ("soft", True, "membrane", True)],
)
def test_compiled_kernel_equals_reference(reset: Reset, detach: bool, site: Site, constant: bool) -> None:
    assert compiler.verdict()[0], "no compiler here: the compiled path went untested"
    mode = Mode(4, Atan(2.0), reset, detach, 0.3, site, band=Band(0.5))
    current = torch.randn(1 if constant else 4, 3, 70, dtype=torch.float64)
    noise = 0.2 * torch.randn(4, 3, 70, dtype=torch.float64)
    assert_same(*both(mode, current, noise, None, fast=True), 1e-12)


def test_bfloat16_spikes_differ_only_next_to_the_threshold() -> None:
    current = torch.randn(4, 500).bfloat16()
    mode, decay, threshold = Mode(4, Atan(2.0)), torch.tensor(0.5), torch.tensor(1.0)
    a = equation.integrate(current, decay, threshold, mode)
    b = compiled.integrate(current, decay, threshold, mode, compiled=compiler.verdict()[0])
    assert a.spikes.dtype == b.spikes.dtype == torch.bfloat16
    differs = (a.spikes != b.spikes).any(0)
    near = (present(a.u).abs() <= 4 * torch.finfo(torch.float32).eps).any(0)
    assert not (differs & ~near).any()


@pytest.mark.parametrize(("reset", "v_init", "site"), [(r, v, s) for r, d, v, s in MODES if not d])
@pytest.mark.parametrize("surrogate", SMOOTH, ids=lambda s: type(s).__name__)
def test_gradients_equal_finite_differences_in_smooth_mode(
    reset: Reset, v_init: float, site: Site, surrogate: Surrogate
) -> None:
    mode = Mode(4, surrogate, reset, False, v_init, site, smooth=True)
    noise = 0.1 * torch.randn(4, 2, 3, dtype=torch.float64)
    leaves = [
        torch.randn(4, 2, 3, dtype=torch.float64),
        torch.tensor(0.6, dtype=torch.float64),
        torch.tensor(0.9, dtype=torch.float64),
    ]

    def f(current: Tensor, decay: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        got = compiled.integrate(current, decay, threshold, mode, noise, compiled=False)
        return got.spikes, present(got.u)

    assert torch.autograd.gradcheck(f, [x.requires_grad_() for x in leaves], eps=1e-6, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_detached_gradients_equal_a_twin_whose_reset_is_frozen(reset: Reset) -> None:
    surrogate = Atan(2.0)
    decay, threshold = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)
    mode = Mode(4, surrogate, reset, True, smooth=True)
    current = torch.randn(4, 6, dtype=torch.float64)
    frozen = compiled.integrate(current, decay, threshold, mode, compiled=False).spikes.detach()

    def twin(x: Tensor) -> Tensor:
        v, out = torch.zeros(6, dtype=torch.float64), []
        for t in range(4):
            h = decay * v + x[t]
            out.append(torch.atan(math.pi / 2 * 2.0 * (h - threshold)) / math.pi + 0.5)
            v = h * (1 - frozen[t]) if reset == "hard" else h - threshold * frozen[t]
        return torch.stack(out)

    weight, step = torch.randn(4, 6, dtype=torch.float64), 1e-6
    leaf = current.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        (compiled.integrate(leaf, decay, threshold, mode, compiled=False).spikes * weight).sum(), leaf
    )
    for t, i in itertools.product(range(4), range(6)):
        up, down = current.clone(), current.clone()
        up[t, i] += step
        down[t, i] -= step
        slope = ((twin(up) * weight).sum() - (twin(down) * weight).sum()) / (2 * step)
        assert abs(float(slope - gradient[t, i])) < 1e-6


@pytest.mark.parametrize("surrogate", SURROGATES, ids=repr)
def test_soft_step_is_a_primitive_of_the_derivative_and_one_half_at_the_threshold(
    surrogate: Surrogate,
) -> None:
    u = torch.linspace(-2.03, 2.03, 401, dtype=torch.float64)
    kinks = (u.abs() - 0.5).abs() < 1e-3
    slope = (surrogate.soft_step(u + 1e-6) - surrogate.soft_step(u - 1e-6)) / 2e-6
    torch.testing.assert_close(slope[~kinks], surrogate.derivative(u)[~kinks], atol=1e-5, rtol=0)
    assert float(surrogate.soft_step(torch.zeros(1, dtype=torch.float64))) == 0.5


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.integers(1, 6),
    st.floats(0, 1),
    st.floats(0.1, 2),
    st.sampled_from(["hard", "soft"]),
    st.integers(0, 10**6),
)
def test_fused_equals_reference_for_any_settings(
    steps: int, decay: float, threshold: float, reset: Reset, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    current = 2 * torch.randn(steps, 2, 5, generator=generator, dtype=torch.float64)
    mode = Mode(steps, Triangle(), reset)
    scalars = torch.tensor(decay, dtype=torch.float64), torch.tensor(threshold, dtype=torch.float64)
    a, b = (
        equation.integrate(current, *scalars, mode),
        compiled.integrate(current, *scalars, mode, compiled=False),
    )
    assert torch.equal(a.spikes, b.spikes)
    assert torch.equal(present(a.u), present(b.u))


@pytest.mark.parametrize(
    ("raised", "reason"),
    [("no g++ found", "no g++ found"), ("it raised:\n\n  no ptxas\nmore", "it raised: no ptxas")],
)
def test_a_machine_without_compiler_says_so_once_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, raised: str, reason: str
) -> None:
    compiler.verdict.cache_clear()
    monkeypatch.setattr(compiler, "compile", lambda f: (_ for _ in ()).throw(RuntimeError(raised)))
    try:
        assert compiler.verdict() == (False, reason)
        assert not compiler.use(10**9, torch.device("cpu"))
        assert [r.getMessage() for r in caplog.records if "uncompiled" in r.getMessage()] == [
            f"neurons run uncompiled, several times slower: torch.compile does not work here ({reason})"
        ]
    finally:
        compiler.verdict.cache_clear()
