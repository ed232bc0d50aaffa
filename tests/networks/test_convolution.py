"""Convolutions with a weight gradient of their own, the join of wide residual networks.

And what an attack leaves uncomputed.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import little_recipe
from narrow import present
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.data.images import Dataset
from spikeguard.kernels import compiler, cpp, cpp_build
from spikeguard.networks import build, convolution
from spikeguard.networks.convolution import Conv, weight_gradient
from spikeguard.networks.wrn import ConvexCombination
from spikeguard.neurons import spiking


@pytest.fixture(autouse=True)
def product_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where the product is the faster way."""
    monkeypatch.setattr(convolution, "pays", lambda: True)


def last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("n", "c", "o", "h", "w"), [(1, 1, 1, 1, 1), (3, 5, 7, 4, 6), (40, 64, 32, 8, 8), (2, 8, 3, 1, 5)]
)
def test_the_weight_gradient_is_the_librarys(
    layout: torch.memory_format, n: int, c: int, o: int, h: int, w: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "_COLUMNS", 2**14)  # several chunks, the last one shorter
    x, g = torch.randn(n, c, h, w, dtype=torch.float64), torch.randn(n, o, h, w, dtype=torch.float64)
    weight = torch.randn(o, c, 3, 3, dtype=torch.float64, requires_grad=True)
    (right,) = torch.autograd.grad(F.conv2d(x, weight, padding=1), weight, g)
    got = weight_gradient(
        g.float().contiguous(memory_format=layout), x.float().contiguous(memory_format=layout)
    )
    torch.testing.assert_close(got.double(), right, rtol=0, atol=2e-5 * float(right.abs().max()))


def test_the_weight_gradient_in_bfloat16_sums_in_float32() -> None:
    x, g = last((torch.rand(64, 16, 4, 4) < 0.3).float()), last(torch.randn(64, 8, 4, 4))
    x, g = x.bfloat16(), g.bfloat16()
    right = weight_gradient(g.float(), x.float())
    got = weight_gradient(g, x).float()
    assert float((got - right).abs().max()) < 2**-7 * float(right.abs().max())


@pytest.mark.parametrize("side", [4, 8, 12])
@pytest.mark.parametrize("half", [False, True])
def test_conv_is_conv2d(side: int, half: bool) -> None:
    torch.manual_seed(1)
    mine, plain = Conv(8, 16, 3, padding=1, bias=False), nn.Conv2d(8, 16, 3, padding=1, bias=False)
    plain.load_state_dict(mine.state_dict())
    x = torch.randn(6, 8, side, side)
    results = []
    for layer in (mine, plain):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            out = layer(leaf)
        out.float().square().sum().backward()
        results.append((out.detach(), leaf.grad, layer.weight.grad))
    assert results[0][0].dtype == results[1][0].dtype == (torch.bfloat16 if half else torch.float32)
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(
            a.float(), b.float(), rtol=0, atol=(0.02 if half else 1e-5) * float(b.abs().max())
        )


def test_an_exact_convolution_sees_one_step_of_a_pixel_under_autocast() -> None:
    """bfloat16 cannot tell 200/255 from 201/255; a first convolution that is exact can."""
    layer = Conv(1, 4, 3, padding=1, bias=False, exact=True)
    rounded = Conv(1, 4, 3, padding=1, bias=False)
    rounded.load_state_dict(layer.state_dict())
    x = torch.full((1, 1, 4, 4), 200 / 255)
    y = x + 0.4 / 255
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rounded(x), rounded(y))
        assert layer(x).dtype == torch.bfloat16
        exact = layer(y).float(), layer(x).float()
    truth = layer(y), layer(x)
    for a, b in zip(exact, truth, strict=True):
        assert torch.equal(a, b.bfloat16().float())


def test_convs_of_all_networks_keep_what_was_loaded_and_their_first_is_exact() -> None:
    for name in ("small", "vgg11", "wrn16"):
        options: dict[str, Any] = {"hidden": (8,)} if name == "vgg11" else {}
        net = build(name, classes=3, in_shape=(3, 16, 16), **options)
        convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        assert [m.exact for m in convs] == [True] + [False] * (len(convs) - 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("side", [4, 5, 40])
def test_the_join_is_its_formula(
    dtype: torch.dtype, learned: bool, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "WORTHWHILE", 0)
    join = ConvexCombination()
    with torch.no_grad():
        join.weight.copy_(torch.tensor([0.3, 0.9]))
    join.weight.requires_grad_(learned)
    x, g = (last(torch.randn(6, 5, side, side)).unflatten(0, (2, 3)).to(dtype) for _ in range(2))
    y = torch.randn(2, 3, 5, side, side).to(dtype)  # lies otherwise in memory
    results = []
    for kind in (dtype, torch.float64):
        leaves = [
            x.to(kind).requires_grad_(),
            y.to(kind).requires_grad_(),
            *([join.weight] if learned else []),
        ]
        out = join(*leaves[:2])
        assert out.dtype == kind
        assert (type(out.grad_fn).__name__ == "_JoinBackward") == (kind != torch.float64)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, g.to(kind))])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.01}[dtype]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(
            a.double(), b.double(), rtol=tolerance, atol=tolerance * float(b.abs().max())
        )


@pytest.mark.parametrize("name", ["small", "wrn16"])
def test_an_attack_computes_no_gradient_of_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what leads to the input.

    No weight gradient, no batch-norm or threshold gradient, in eval and in train mode.
    """
    assert cpp_build.verdict()[0], "the C++ path cannot be built here: it went untested"
    monkeypatch.setattr(compiler, "WORTHWHILE", 0)
    asked: list[dict[str, int]] = []
    run = cpp._Layer.run

    def spied(
        self: cpp._Layer,
        which: int,
        name: str,
        sums: int = 0,
        flags: dict[str, int] | None = None,
        **tensors: Tensor | None,
    ) -> Tensor:
        if name == "backward":
            asked.append(present(flags))
        return run(self, which, name, sums, flags, **tensors)

    monkeypatch.setattr(cpp._Layer, "run", spied)
    products: list[int] = []

    def counted(g: Tensor, x: Tensor) -> Tensor:
        products.append(1)
        return weight_gradient(g, x)

    monkeypatch.setattr(convolution, "weight_gradient", counted)
    net = build(name, classes=4, in_shape=(1, 16, 16), timesteps=2).eval()
    x = torch.rand(3, 1, 16, 16, requires_grad=True)
    (alone,) = torch.autograd.grad(net(x).square().sum(), x)
    assert not products
    assert asked
    assert not any(f["AFFINE"] or f["SCALARS"] for f in asked)
    asked.clear()
    net(x).square().sum().backward()
    assert products
    assert len(asked) == len(spiking(net))
    assert all(f["AFFINE"] for f in asked)
    assert torch.equal(present(x.grad), alone)
    assert all(p.grad is not None for p in net.parameters())


def switches() -> tuple[object, ...]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    names = ("fp32_precision",) if hasattr(cudnn, "conv") else ("allow_tf32",)
    return (
        cudnn.deterministic,
        *(getattr(part, name) for part in (getattr(cudnn, "conv", cudnn), matmul) for name in names),
    )


@pytest.mark.parametrize("high", [False, True])
def test_float32_is_not_rounded_to_tf32_on_a_gpu_while_networks_train_and_are_judged(
    little_data: Dataset, high: bool, short_suite: None
) -> None:
    """The switches, watched from inside: what they do is tested where there is a GPU."""
    seen: list[tuple[object, ...]] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(switches())
        logits: Tensor = net(x)
        return logits

    asked = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if high else "highest")
    try:
        before = switches()
        net = sg.train(
            little_recipe(epochs=1), data=little_data, progress=lambda _: seen.append(switches())
        ).net
        sg.audit(
            watched, little_data.test.pixels()[:10], little_data.test.y[:10], sg.Linf(0.03), effort="quick"
        )
        assert len(set(seen)) == 1
        assert seen[0][0] is True
        assert not {"tf32", True} & {str(v) if isinstance(v, str) else v for v in seen[0][1:]}
        assert switches() == before
    finally:
        torch.set_float32_matmul_precision(asked)
