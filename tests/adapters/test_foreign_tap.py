"""What a tap promises on neurons of other frameworks, beyond reading them."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.adapters import layers, reset

Raw = Any
Build = Callable[[], nn.Module]


class Stepped(nn.Module):
    """Layers stepped over a constant image, reset before; ``unpack`` takes what a neuron returns."""

    def __init__(self, *fires: nn.Module, steps: int = 4) -> None:
        super().__init__()
        self.lins = nn.ModuleList([nn.Linear(6, 6) for _ in fires])
        self.fires, self.steps = nn.ModuleList(fires), steps
        for lin in self.lins:
            nn.init.normal_(lin.weight, std=1.5)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        reset(self)
        states: list[Raw] = [None] * len(self.fires)
        out = []
        for _ in range(self.steps):
            z = x
            for k, (lin, fire) in enumerate(zip(self.lins, self.fires, strict=True)):
                if "norse" in type(fire).__module__:
                    z, states[k] = fire(lin(z), states[k])
                elif isinstance(fire, sg.neurons.Spiking):
                    z = fire(lin(z)[None])[0]
                else:
                    z = fire(lin(z))
            out.append(z)
        return torch.stack(out).mean(0)


def jelly(mode: str = "s", **more: Raw) -> nn.Module:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    made: nn.Module = neuron.LIFNode(step_mode=mode, **more)
    return made


def snn(**more: Raw) -> nn.Module:
    made: nn.Module = pytest.importorskip("snntorch").Leaky(beta=0.8, init_hidden=True, **more)
    return made


def cell() -> nn.Module:
    nt = pytest.importorskip("norse.torch")
    made: nn.Module = nt.LIFCell(p=nt.LIFParameters(tau_mem_inv=torch.tensor(500.0)))
    return made


def sinabs(**more: Raw) -> nn.Module:
    sl, sa = pytest.importorskip("sinabs.layers"), pytest.importorskip("sinabs.activation")
    made: nn.Module = sl.LIF(tau_mem=3.0, spike_fn=sa.SingleSpike, **more)
    return made


STEPPED: dict[str, Build] = {"SpikingJelly": jelly, "snnTorch": snn, "norse": cell}


@pytest.fixture(params=STEPPED)
def net(request: pytest.FixtureRequest) -> Stepped:
    torch.manual_seed(3)
    build = STEPPED[request.param]
    return Stepped(build(), build())


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 6, generator=torch.Generator().manual_seed(1))


def attributes(net: nn.Module) -> list[dict[str, Raw]]:
    """Every attribute of every module, by identity later; states aside, which calls change."""
    states = {"_memories", "_buffers", "reset", "mem"}
    return [{k: v for k, v in vars(m).items() if k not in states} for m in net.modules()]


def same(before: list[dict[str, Raw]], after: list[dict[str, Raw]]) -> bool:
    return all(
        a.keys() == b.keys() and all(a[k] is b[k] for k in a) for a, b in zip(before, after, strict=True)
    )


def test_each_pass_is_a_recording_and_the_module_is_itself_again(net: Stepped, x: Tensor) -> None:
    plain, before = net(x), attributes(net)
    with sg.tap(net) as tapped:
        assert torch.equal(net(x), plain)
        net(x[:2])
    assert {k: tuple(u.shape) for k, u in tapped.potentials.items()} == {
        "fires.0": (4, 5, 6),
        "fires.1": (4, 5, 6),
        "fires.0#1": (4, 2, 6),
        "fires.1#1": (4, 2, 6),
    }
    assert same(before, attributes(net))
    tapped.clear()
    assert not tapped.potentials


def test_an_exception_inside_leaves_nothing_behind(net: Stepped, x: Tensor) -> None:
    net(x)
    before = attributes(net)
    with pytest.raises(RuntimeError), sg.tap(net, noise=0.1):
        net(x[:, :3])
    assert same(before, attributes(net))
    assert not any(layer.requests for layer in layers(net).values())


def test_nested_taps_each_read_and_the_inner_one_decides(net: Stepped, x: Tensor) -> None:
    before = attributes(net)
    with sg.tap(net, noise=5.0, seed=1, potentials=True) as outer:
        with sg.tap(net, noise=0.0, potentials=True) as inner:
            quiet = net(x)
        loud = net(x)
    assert torch.equal(quiet, net(x))
    assert not torch.equal(loud, quiet)
    assert set(outer.potentials) == {*inner.potentials, "fires.0#1", "fires.1#1"}
    assert torch.equal(outer.potentials["fires.1"], inner.potentials["fires.1"])
    assert same(before, attributes(net))


def test_noise_is_fresh_each_step_and_pass_and_the_same_for_any_batch(net: Stepped, x: Tensor) -> None:
    layer, still = net.fires[0], torch.zeros(5, 6)
    with torch.no_grad():
        net.lins[0].weight.zero_()  # type: ignore[operator]
        net.lins[0].bias.fill_(0.01)  # type: ignore[operator]

    def spikes(batch: Tensor, seed: int | None = None) -> Tensor:
        out: list[Tensor] = []
        with sg.tap(layer, noise=2.0, seed=seed):
            hook = layer.register_forward_hook(
                lambda m, i, o: out.append(o[0] if isinstance(o, tuple) else o)
            )
            net(batch)
            net(batch)
            hook.remove()
        return torch.stack(out).view(2, 4, *batch.shape)

    drawn = spikes(still, seed=4)
    assert len({tuple(step.flatten().tolist()) for step in drawn.flatten(0, 1)}) == 8
    assert torch.equal(drawn, spikes(still, seed=4))
    assert torch.equal(drawn[:, :, :2], spikes(still[:2], seed=4))
    assert not torch.equal(drawn, spikes(still, seed=5))
    assert not torch.equal(spikes(still), spikes(still)), "a tap without a seed goes on"


@pytest.mark.parametrize("build", [jelly, snn], ids=["SpikingJelly", "snnTorch"])
def test_noise_moves_spike_and_reset_together(build: Build) -> None:
    """u of the next step follows from the spikes that were sent."""
    torch.manual_seed(0)
    layer, x = build(), 1.5 * torch.rand(6, 4, 50)
    with sg.tap(layer, noise=0.5, seed=0, potentials=True) as tapped:
        spikes = torch.stack([layer(step) for step in x])
    h = tapped.potentials[""] + 1.0
    for t in range(5):
        if build is jelly:
            v = h[t] * (1.0 - spikes[t])
            assert torch.allclose(h[t + 1], v + (x[t + 1] - v) / 2.0, atol=1e-6)
        else:
            assert torch.allclose(h[t + 1], 0.8 * h[t] + x[t + 1] - spikes[t], atol=1e-6)
    assert bool(((h >= 1.0) != (spikes > 0)).any()), "noise changed nothing"


def test_the_noise_is_that_of_our_own_layers(x: Tensor) -> None:
    current = 1.5 * torch.rand(5, 3, 4, 6, 6)
    ours, theirs = sg.LIF(decay=0.5), jelly("m")
    with sg.tap(ours, noise=0.3, seed=2):
        spikes = ours(current)
    with sg.tap(theirs, noise=0.3, seed=2):
        assert torch.equal(theirs(2.0 * current), spikes)


def test_a_surrogate_changes_gradients_only(net: Stepped, x: Tensor) -> None:
    found = []
    for width in (0.5, 5.0):
        z = x.clone().requires_grad_()
        with sg.tap(net, surrogate=sg.surrogates.Triangle(width)):
            out = net(z)
        assert torch.equal(out, net(x))
        found.append(torch.autograd.grad(out.sum(), z)[0])
    assert not torch.allclose(found[0], found[1])


def test_the_band_penalty_is_the_mean_hinge_and_has_a_gradient(net: Stepped, x: Tensor) -> None:
    with sg.tap(net, band=sg.neurons.Band(0.5), potentials=True, grad=True) as tapped:
        net(x)
    for name, penalty in tapped.penalties.items():
        hinge = (0.5 - tapped.potentials[name].abs()).clamp(min=0.0).mean()
        assert torch.allclose(penalty, hinge)
    total = torch.stack(list(tapped.penalties.values())).sum()
    assert float(torch.autograd.grad(total, net.lins[0].weight)[0].abs().sum()) > 0  # type: ignore[arg-type]


def test_mixed_models_are_read_layer_by_layer(x: Tensor) -> None:
    net = Stepped(jelly(), snn(), cell(), sg.LIF(decay=0.5))
    plain = net(x)
    with sg.tap(net) as tapped:
        assert torch.equal(net(x), plain)
    shapes = {name: tuple(u.shape) for name, u in tapped.potentials.items() if "#" not in name}
    assert shapes == {**{f"fires.{k}": (4, 5, 6) for k in range(3)}, "fires.3": (1, 5, 6)}
    assert [layer.framework for layer in layers(net).values()] == [
        "SpikingJelly",
        "snnTorch",
        "norse",
        "spikeguard",
    ]


def test_two_threads_tap_two_models(x: Tensor) -> None:
    nets, read = [Stepped(jelly(), jelly()) for _ in range(2)], {}
    want = []
    for net in nets:
        with sg.tap(net) as tapped:
            net(x)
        want.append(tapped.potentials)

    def work(k: int) -> None:
        for _ in range(5):
            with sg.tap(nets[k]) as tapped:
                nets[k](x)
            read[k] = tapped.potentials

    run_threads(work)
    for k in range(2):
        assert all(torch.equal(read[k][name], u) for name, u in want[k].items())
        assert not any(layer.requests for layer in layers(nets[k]).values())


@pytest.mark.parametrize("build", [cell, lambda: sg.LIF(decay=0.5)], ids=["norse", "spikeguard"])
def test_two_threads_tap_the_same_model(build: Build, x: Tensor) -> None:
    net, batches = Stepped(build(), build()), (x, x[:2])
    before, read, barrier = attributes(net), {}, threading.Barrier(2)

    def work(k: int) -> None:
        with sg.tap(net, noise=0.0 if k else 3.0, seed=1, potentials=True) as tapped:
            barrier.wait(10)
            out = net(batches[k])
            barrier.wait(10)
        read[k] = (tapped.potentials, out)

    run_threads(work)
    assert {u.shape[1] for u in read[0][0].values()} == {5}
    assert {u.shape[1] for u in read[1][0].values()} == {2}
    assert torch.equal(read[1][1], net(x[:2])), "the other thread's noise came in"
    assert not torch.equal(read[0][1], net(x))
    assert same(before, attributes(net))


def run_threads(work: Callable[[int], None]) -> None:
    failed: list[BaseException] = []

    def guarded(k: int) -> None:
        try:
            work(k)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failed, failed


def test_a_copy_made_while_a_tap_is_open_is_a_model_of_its_own(net: Stepped, x: Tensor) -> None:
    with torch.no_grad():  # a state with a graph cannot be copied, tap or not
        plain = net(x)
    with torch.no_grad(), sg.tap(net, noise=3.0) as tapped:
        twin = copy.deepcopy(net)
        assert torch.equal(twin(x), plain)
        assert not tapped.potentials
    with torch.no_grad():
        for fire in twin.fires:
            if hasattr(fire, "v_threshold"):
                vars(fire)["v_threshold"] = 100.0
    assert torch.equal(net(x), plain)


def test_the_parameters_and_the_state_dict_are_the_same_while_a_tap_is_open(net: Stepped) -> None:
    names = (
        list(net.state_dict()),
        [n for n, _ in net.named_parameters()],
        [n for n, _ in net.named_modules()],
    )
    with sg.tap(net, noise=0.1):
        assert names == (
            list(net.state_dict()),
            [n for n, _ in net.named_parameters()],
            [n for n, _ in net.named_modules()],
        )


@pytest.mark.parametrize("build", [jelly, sinabs], ids=["SpikingJelly", "sinabs"])
def test_the_reset_can_be_detached(build: Build) -> None:
    layer, found = build(), []
    for detach in (False, True):
        z = (torch.rand(3, 4, 20, generator=torch.Generator().manual_seed(0)) * 4.0).requires_grad_()
        reset(layer)
        with sg.tap(layer, surrogate=sg.surrogates.Atan(2.0), detach_reset=detach):
            out = torch.stack([layer(step) for step in z]) if build is jelly else layer(z)
        found.append(torch.autograd.grad(out.sum(), z)[0])
    assert not torch.allclose(found[0], found[1])


def test_snntorch_resets_with_a_gradient_only_if_asked() -> None:
    found, layer = [], snn()
    for detach in (False, True, None):
        z = (torch.rand(4, 3, 20, generator=torch.Generator().manual_seed(0)) * 1.5).requires_grad_()
        reset(layer)
        with sg.tap(layer, surrogate=sg.surrogates.Atan(2.0), detach_reset=detach):
            out = torch.stack([layer(step) for step in z])
        found.append(torch.autograd.grad(out.sum(), z)[0])
    assert not torch.allclose(found[0], found[1])
    assert torch.equal(found[1], found[2])


@pytest.mark.parametrize("reset_to", [0.0, None])
def test_surrogate_and_reset_have_the_gradient_of_our_own_layer(reset_to: float | None) -> None:
    """The same equation, surrogate and reset: the same gradient."""
    ours, theirs = (
        sg.LIF(decay=0.5, reset="soft" if reset_to is None else "hard"),
        jelly("m", v_reset=reset_to),
    )
    current, surrogate = torch.rand(5, 3, 40) * 1.5, sg.surrogates.Atan(3.0)
    found = []
    for layer, scale in ((ours, 1.0), (theirs, 2.0)):
        z = current.clone().requires_grad_()
        with sg.tap(layer, surrogate=surrogate):
            out = layer(z * scale)
        found.append(torch.autograd.grad((out * torch.arange(40)).sum(), z)[0])
    assert torch.allclose(found[0], found[1], atol=1e-3, rtol=1e-4)


WHOLE: dict[str, tuple[Build, float, str]] = {
    "SpikingJelly": (lambda: jelly("m"), 2.0, "time"),
    "sinabs": (sinabs, 3.0, "batch"),
}


@pytest.mark.parametrize("rule", [sg.gradients.BPTR(), sg.gradients.RGA(), sg.gradients.HART(1.0)])
@pytest.mark.parametrize("framework", ["SpikingJelly", "norse", "sinabs", "snnTorch"])
def test_a_whole_sequence_has_the_backward_pass_of_our_own_layer(framework: str, rule: Raw) -> None:
    """Forward bits unchanged; the gradient is the rule's, of the currents that the equation integrates."""
    x = 3.0 * torch.rand(5, 4, 6)
    layer, run = whole(framework)
    reset(layer)
    plain = run(layer, x)
    z = x.clone().requires_grad_()
    reset(layer)
    with sg.tap(layer, backward=rule, currents=True, potentials=True) as tapped:
        out = run(layer, z)
    assert torch.equal(out.detach(), plain.detach())
    g = torch.rand_like(out)
    (found,) = torch.autograd.grad(out, z, g)
    assert bool(found.isfinite().all())
    assert float(found.abs().sum()) > 0
    # the currents, integrated by our own equation without a reset, give the first step's potential
    current, u = tapped.currents[""], tapped.potentials[""]
    assert torch.allclose(current[0] - 1.0, u[0], atol=1e-6)
    if framework == "SpikingJelly":
        own = sg.LIF(decay=0.5)
        y = (x / 2.0).requires_grad_()
        with sg.tap(own, backward=rule):
            spikes = own(y)
        assert torch.equal(spikes, out)
        assert torch.allclose(torch.autograd.grad(spikes, y, g)[0] / 2.0, found, atol=1e-5)


def whole(framework: str) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    """A layer that computes whole sequences, and how it is called with ``[T, N, ...]``."""
    if framework == "SpikingJelly":
        return jelly("m"), lambda m, x: m(x)
    if framework == "norse":
        nt = pytest.importorskip("norse.torch")
        return nt.LIF(p=nt.LIFParameters(tau_mem_inv=torch.tensor(400.0))), lambda m, x: m(x)[0]
    if framework == "sinabs":
        return sinabs(), lambda m, x: m(x.transpose(0, 1)).transpose(0, 1)
    snn = pytest.importorskip("snntorch")
    return snn.StateLeaky(beta=0.5, channels=6), lambda m, x: m(x)[0]


@pytest.mark.parametrize("framework", ["SpikingJelly", "norse", "sinabs", "snnTorch"])
def test_rates_stand_in_for_the_spikes_of_a_whole_sequence(framework: str) -> None:
    x = 3.0 * torch.rand(5, 4, 6) - 1.0
    layer, run = whole(framework)
    with sg.tap(layer, relu=True):
        rates = run(layer, x)
    reset(layer)
    with sg.tap(layer, currents=True) as tapped:
        run(layer, x)
    assert torch.allclose(rates, tapped.currents[""].clamp(min=0.0))


@pytest.mark.parametrize(
    ("build", "changes", "reason"),
    [
        (jelly, {"backward": sg.gradients.BPTR()}, "stepped from outside"),
        (snn, {"relu": True}, "stepped from outside"),
        (cell, {"currents": True}, "stepped from outside"),
        (cell, {"detach_reset": True}, "its step fixes"),
        (jelly, {"noise": sg.Noise(0.1, "membrane")}, "membrane"),
        (lambda: snn(inhibition=True), {}, "inhibition"),
    ],
)
def test_what_a_layer_cannot_do_is_refused_in_one_line(
    build: Build, changes: dict[str, Raw], reason: str
) -> None:
    with pytest.warns() if "inhibition" in reason else pytest.MonkeyPatch.context():
        net = nn.Sequential(nn.Flatten(), build())
    with pytest.raises(sg.UserError, match=reason) as caught:
        sg.tap(net, **changes)
    assert str(caught.value).startswith("tap: 1 (")
    assert "\n" not in str(caught.value)


def test_spikes_of_gates_are_refused() -> None:
    rnn = pytest.importorskip("spikingjelly.activation_based.rnn")
    with pytest.raises(sg.UserError, match=r"0 \(SpikingJelly SpikingVanillaRNNCell\): its gates"):
        sg.tap(nn.Sequential(rnn.SpikingVanillaRNNCell(3, 4), jelly()))


def test_norse_adjoint_and_quantizing_or_silent_layers_are_refused() -> None:
    nt, sl = pytest.importorskip("norse.torch"), pytest.importorskip("sinabs.layers")
    with pytest.raises(sg.UserError, match="adjoint"):
        sg.tap(nt.LIF(p=nt.LIFParameters(method="adjoint")))
    with pytest.raises(sg.UserError, match="SingleSpike"):
        sg.tap(sl.LIF(tau_mem=2.0), smooth=True)
    membrane = pytest.importorskip("snntorch").StateLeaky(beta=0.5, channels=6, output=False)
    with pytest.raises(sg.UserError, match="never fires"):
        sg.tap(membrane)


def test_reset_resets_this_net_and_nothing_else(x: Tensor) -> None:
    one, other = Stepped(jelly(), snn(), sinabs()), (jelly(), snn())
    for layer in (*one.fires[:2], *other):
        layer(x)
    one.fires[2](x[:, None])
    kept = other[0].v, other[1].mem
    reset(one)
    assert isinstance(one.fires[0].v, float)
    assert float(one.fires[1].mem.abs().sum()) == 0.0  # type: ignore[operator]
    assert float(one.fires[2].v_mem.abs().sum()) == 0.0  # type: ignore[operator]
    assert other[0].v is kept[0]
    assert other[1].mem is kept[1]
    assert float(kept[1].abs().sum()) > 0  # type: ignore[operator]


def test_reset_keeps_the_graph_of_the_last_pass(x: Tensor) -> None:
    for layer in (jelly(), snn(), sinabs()):
        z = x.clone().requires_grad_()
        out = layer(z[:, None] if "sinabs" in type(layer).__module__ else z)
        reset(layer)
        assert torch.autograd.grad(out.sum(), z)[0].shape == x.shape
        layer(x[:, None] if "sinabs" in type(layer).__module__ else x)


class Counter(nn.Module):
    """Fires at 1, and keeps nothing."""

    def spike(self, h: Tensor) -> Tensor:
        return (h >= 1.0).to(h.dtype)

    def forward(self, current: Tensor) -> Tensor:
        return self.spike(current)


def test_a_tapped_layer_is_kept_from_the_compiler(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole compiled model takes half a minute; this is the call that leaves a layer out."""
    sg.adapters.add(Counter, fire="spike", threshold=lambda layer: 1.0)
    net, kept = nn.Sequential(nn.Linear(6, 6), Counter()), list[object]()

    def disable(run: object) -> object:
        kept.append(run)
        return run

    monkeypatch.setitem(sys.modules, "torch._dynamo", sys.modules.get("torch._dynamo", torch))
    monkeypatch.setattr(torch.compiler, "disable", disable)
    plain = net(x)
    assert not kept
    with sg.tap(net) as tapped:
        assert torch.equal(net(x), plain)
    assert len(kept) == 1
    assert torch.equal(tapped.potentials["1"], net[0](x)[None] - 1.0)
    sg.adapters.remove(Counter)
