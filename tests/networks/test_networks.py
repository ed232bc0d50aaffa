"""Networks: shapes, counts, the first convolution computed once, readout, layouts and precision."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import awake, little_recipe
from narrow import stages_of
from torch import nn

import spikeguard as sg
from spikeguard.diagnosis.neighbors import gain_scaled, neighbors
from spikeguard.errors import UserError
from spikeguard.networks import NETWORKS
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import spiking
from spikeguard.runtime.machine import machine
from spikeguard.training import builder

OPTIONS: dict[str, dict[str, Any]] = {
    "small": {"width": 4},
    "vgg11": {"hidden": (16, 16)},
    "wrn16": {"widen": 1},
}
LAYERS = {"small": 3, "vgg11": 10, "wrn16": 13}


def make(name: str, **rest: Any) -> Classifier:
    settings: dict[str, Any] = {
        "classes": 7,
        "in_shape": (3, 16, 16),
        "timesteps": 3,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        **OPTIONS[name],
    }
    batches, size = (30, 32) if name == "small" else (10, 4)
    return awake(sg.build(name, **settings | rest), batches, size)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name: str) -> None:
    net, x = make(name), torch.rand(4, 3, 16, 16)
    logits = net(x)
    assert logits.shape == (4, 7)
    assert len(spiking(net)) == LAYERS[name]
    steps = net(x, per_step=True)
    assert steps.shape == (3, 4, 7)
    torch.testing.assert_close(steps.mean(0), logits, atol=1e-6, rtol=1e-5)
    assert torch.equal(net(x), logits)
    assert torch.equal(make(name)(x), logits), "weights are not a function of the seed"
    assert not torch.equal(make(name, seed=1)(x), logits)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_learns_through_every_parameter(name: str) -> None:
    net = make(name, neuron=sg.Neuron(surrogate=sg.surrogates.Atan(1.0), learn_threshold=True)).train()
    net(torch.rand(4, 3, 16, 16)).square().sum().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_convolution_runs_once_for_a_constant_image(name: str) -> None:
    net = make(name)
    sizes: list[int] = []
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda m, inputs, output: sizes.append(len(inputs[0])))
    net(torch.rand(4, 3, 16, 16))
    assert sizes == [4]


def test_full_sizes_are_those_of_the_literature() -> None:
    """VGG-11 with 4096-4096 and WRN-16-4, counted from their definitions."""
    channels = [3, 64, 128, 256, 512, 512, 512, 512, 512]
    convolutions = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(channels))
    linear = (512 * 16 + 1) * 4096 + 4097 * 4096 + 4097 * 10
    count = sum(p.numel() for p in sg.build("vgg11", classes=10, in_shape=(3, 32, 32)).parameters())
    assert count == convolutions + linear
    wrn = sum(p.numel() for p in sg.build("wrn16", classes=10, in_shape=(3, 32, 32)).parameters())
    assert abs(wrn - 2.75e6) < 0.03e6


def test_layout_and_precision_change_speed_not_classes() -> None:
    torch.manual_seed(0)
    net, x = make("small"), torch.rand(64, 3, 16, 16)
    plain = net(x)
    assert torch.allclose(net.prefer(channels_last=True)(x), plain, atol=0.5)
    agree = (net(x).argmax(1) == plain.argmax(1)).float().mean()
    assert agree >= 0.95
    half = net.prefer(channels_last=True, autocast=torch.bfloat16)(x)
    assert half.dtype == torch.float32
    assert (half.argmax(1) == plain.argmax(1)).float().mean() >= 0.8


KEYS = {  # as checkpoints of version 0.1 hold them
    "small": {f"body.stages.{k}.norm.weight" for k in range(3)},
    "vgg11": {f"body.features.stages.{k}.norm.weight" for k in range(8)},
    "wrn16": {f"body.blocks.{k}.norm{i}.weight" for k in range(6) for i in (1, 2)} | {"body.norm.weight"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_norms_keep_their_keys_and_belong_to_the_layer_after_them(name: str) -> None:
    """A layer's norm is the network's: loaded with it, copied with it, and where a checkpoint has it."""
    net, x = make(name), torch.rand(4, 3, 16, 16)
    assert {k for k in net.state_dict() if "norm" in k and k.endswith("weight")} == KEYS[name]
    assert not [k for k in net.state_dict() if ".fire.norm" in k]
    norms = {n: m for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    layers = [layer for layer in spiking(net).values() if layer.norm is not None]
    assert [id(layer.norm) for layer in layers] == [id(m) for m in norms.values()]
    loaded = make(name, seed=5)
    loaded.load_state_dict(copy.deepcopy(net.state_dict()))
    twin = copy.deepcopy(net)
    logits = net(x)
    with torch.no_grad():
        for norm in norms.values():
            norm.weight.mul_(0.5)
    assert not torch.equal(net(x), logits)
    assert torch.equal(loaded(x), logits)
    assert torch.equal(twin(x), logits), "a copy uses the norms of the original"


def test_a_norm_that_is_replaced_is_no_longer_used() -> None:
    net, x = make("small"), torch.rand(4, 3, 16, 16)
    logits, stage = net(x), stages_of(net)[0]
    kept = stage.norm
    stage.norm = nn.Identity()  # type: ignore[assignment]
    assert stage.fire.norm is stage.norm
    assert not torch.equal(net(x), logits)
    stage.norm = kept
    assert torch.equal(net(x), logits)


def test_an_open_autocast_is_followed() -> None:
    """The plain idiom gives the bits of ``prefer(autocast=bfloat16)`` both ways; float32 can be kept."""
    x, found = torch.rand(4, 3, 16, 16), {}
    for way in ("float32", "preferred", "plain", "kept"):
        net = make("vgg11").train()
        net.prefer(autocast={"preferred": torch.bfloat16, "kept": torch.float32}.get(way))
        with torch.autocast("cpu", torch.bfloat16, enabled=way in ("plain", "kept")):
            logits = net(x)
        assert logits.dtype == torch.float32
        found[way] = (logits, *torch.autograd.grad(logits.square().sum(), list(net.parameters())))
    for a, b in (("plain", "preferred"), ("kept", "float32")):
        assert all(torch.equal(one, other) for one, other in zip(found[a], found[b], strict=True))
    assert not torch.equal(found["plain"][0], found["float32"][0])


@pytest.mark.parametrize(
    ("network", "instructions", "precision"),
    [
        ("wrn16", ["avx512_bf16", "avx512f"], "bfloat16"),
        ("wrn16", ["avx512f", "avx2"], "float32"),
        ("small", ["amx_bf16", "avx512_bf16"], "float32"),
    ],
)
def test_auto_precision_is_a_function_of_machine_and_size(
    network: str, instructions: list[str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "machine", lambda: replace(machine(), instructions=tuple(instructions)))
    net = sg.build(network, classes=10, in_shape=(3, 32, 32))
    assert builder.pick_precision(net, torch.device("cpu")) == precision


def test_the_record_says_what_auto_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "LARGE", 1)
    monkeypatch.setattr(builder, "NATIVE_BFLOAT16", frozenset(machine().instructions))
    run = sg.train(little_recipe(precision="auto", epochs=1))
    assert run.record.recipe["precision"] == "bfloat16"
    assert run.net.autocast == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sg.build("vgg12", classes=10, in_shape=(3, 32, 32)),
            "unknown network 'vgg12' (did you mean 'vgg11'? known: small, vgg11, wrn16)",
        ),
        (lambda: make("small", timesteps=0), "timesteps = 0 must be at least 1"),
        (lambda: make("small", in_shape=(3, 4, 4)), "at least 8 pixels"),
        (lambda: make("small", mean=(0.5, 0.5)), "mean has 2 values"),
        (lambda: make("small", std=(0.0, 0.1, 0.1)), "must be above 0"),
        (lambda: make("small", hidden=3), "has no option 'hidden' (known: width, depth, gain)"),
        (lambda: make("small", encoding="poisson"), "unknown encoding"),
        (lambda: make("small")(torch.rand(4, 1, 16, 16)), "must be floats of shape [N, 3, 16, 16]"),
    ],
)
def test_nonsense_is_refused_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_neighbor_shares_equal_a_direct_count_and_the_control_reaches_the_share() -> None:
    net, x = make("small"), torch.rand(20, 3, 16, 16)
    found = neighbors(net, x, delta=0.3, batch_size=7)
    with torch.no_grad(), sg.tap(net) as t:
        net(x)
    for name, u in t.potentials.items():
        assert found.absolute[name] == pytest.approx(float((u.abs() < 0.3).float().mean()), abs=1e-6)
        assert found.relative[name] == pytest.approx(
            float((u.abs() < 0.3 * u.std()).float().mean()), abs=1e-4
        )
    target = 0.8 * found.mean
    before = [p.clone() for p in net.parameters()]
    control, factor = gain_scaled(net, x, target, delta=0.3)
    assert factor > 1
    assert neighbors(control, x, delta=0.3).mean == pytest.approx(target, rel=0.05)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_depth_repeats_every_stage_of_the_small_network() -> None:
    """Convolutions 3-4, 4-4, 4-8, 8-8, 8-16, 16-16, each pair on half the side of the one before."""
    net = make("small", depth=2)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [
        (3, 4),
        (4, 4),
        (4, 8),
        (8, 8),
        (8, 16),
        (16, 16),
    ]
    with sg.tap(net) as opened:
        net(torch.rand(2, 3, 16, 16))
    assert [u.shape[-1] for u in opened.potentials.values()] == [16, 16, 8, 8, 4, 4]
