"""Every defense changes what it claims to change, on tiny networks trained for seconds.

And a training with it resumes to the same bits.
"""

import copy
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import halved, little_recipe
from narrow import as_a, conv_of, stages_of
from torch import Tensor

import spikeguard as sg
from spikeguard.data.images import Dataset
from spikeguard.defenses import DEFENSES, Defense, disturbance, fitted, membrane
from spikeguard.defenses.adversarial import divergence
from spikeguard.defenses.gradient import best_wrong, chance
from spikeguard.defenses.inputs import Leaks
from spikeguard.defenses.neural import Gains, Gates, Homeostatic
from spikeguard.diagnosis.neighbors import gain_scaled, neighbors
from spikeguard.errors import Interrupted
from spikeguard.losses import ce
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Noise, seed_noise, spiking
from spikeguard.training import loop
from spikeguard.training.builder import make_network, training_parts
from spikeguard.training.loop import train
from spikeguard.training.trainer import Report

EPS = 16 / 255


@pytest.fixture(scope="module")
def large() -> Dataset:
    """Images of 28x28 pixels, for what a smaller network does not learn in seconds."""
    from spikeguard.data.images import Dataset

    full = sg.load_data("embedded")
    return Dataset(
        "little", full.train.balanced(1000), full.test.balanced(100), full.classes, full.mean, full.std
    )


Trained = Callable[..., Classifier]
"""(*defenses, **changes of the recipe) -> network"""
Measure = Callable[[Classifier, Tensor, Tensor], float]


@pytest.fixture(scope="module")
def data(large: Dataset) -> Dataset:
    return replace(large, train=halved(large.train), test=halved(large.test))


@pytest.fixture(scope="module")
def trained(data: Dataset, large: Dataset) -> Iterator[Trained]:
    """A network by its defenses, trained once a module."""
    from spikeguard.kernels import compiler

    before, compiler.WORTHWHILE = compiler.WORTHWHILE, 2**62
    torch.set_num_threads(1)
    made: dict[object, Classifier] = {}

    def get(*defenses: Defense, side: int = 14, **changes: object) -> Classifier:
        key = (defenses, side, tuple(changes.items()))
        if key not in made:
            recipe = little_recipe(defenses=defenses, epochs=4, options={"width": 4}, **changes)
            made[key] = train(recipe, data=large if side == 28 else data).net
        return made[key]

    yield get
    compiler.WORTHWHILE = before


def images(data: Dataset) -> tuple[Tensor, Tensor]:
    return data.test.pixels(), data.test.y


def disturbed(net: Classifier, x: Tensor, y: Tensor) -> Tensor:
    return sg.pgd(net, x, y, sg.Linf(EPS), steps=3, restarts=1, early_stop=False).x


def slope(net: Classifier, x: Tensor, y: Tensor) -> float:
    """l1 norm of the input gradient of the class's chance."""
    x = x.clone().requires_grad_()
    z = net(x)
    (g,) = torch.autograd.grad(chance(z, y, best_wrong(z, y)).sum(), x)
    return float(g.abs().sum())


def difference(net: Classifier, x: Tensor, y: Tensor) -> float:
    found = disturbed(net, x, y)
    with torch.no_grad(), sg.tap(net, currents=True) as t:
        net(x)
        net(found)
    layer = list(spiking(net))[-1]
    clean, moved = t.currents[layer], t.currents[f"{layer}#1"]
    return float(
        disturbance.difference(clean, moved, spiking(net)[layer].decay, 2).abs().mean() / clean.abs().mean()
    )


def mass(net: Classifier, x: Tensor, y: Tensor) -> float:
    with torch.no_grad(), sg.tap(net) as t:
        net(x)
    return sum(float(membrane.mass(*membrane.moments(u), 1.0).mean()) for u in t.potentials.values())


def within_shift(net: Classifier, x: Tensor, y: Tensor) -> float:
    """Share of potentials that lie nearer to the threshold than the attack moves their channel."""
    found = disturbed(net, x, y)
    with torch.no_grad(), sg.tap(net) as t:
        net(x)
        net(found)
    shares = []
    for name in spiking(net):
        u, shift = t.potentials[name], (t.potentials[f"{name}#1"] - t.potentials[name]).abs()
        margin = disturbance.quantile(shift).view(-1, *[1] * (u.dim() - 3))
        shares.append(float((u.abs() < margin).float().mean()))
    return sum(shares) / len(shares)


def within_reach(net: Classifier, x: Tensor, y: Tensor) -> float:
    stage = stages_of(net)[0]
    with torch.no_grad(), sg.tap(net) as t:
        net(x)
    u = t.potentials["body.stages.0.fire"]
    bound = disturbance.attainable(EPS, conv_of(stage), stage.norm, net.std, float(stage.fire.decay), len(u))
    return float((u.abs() < bound[:, None, :, None, None]).float().mean())


def gap(net: Classifier, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(divergence(net(x), net(disturbed(net, x, y))).mean())


def broken(net: Classifier, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net(disturbed(net, x, y)).argmax(1) != y).float().mean())


def broken_by_assg(net: Classifier, x: Tensor, y: Tensor) -> float:
    return float(
        sg.sapgd(
            net, x, y, sg.Linf(EPS), steps=10, restarts=1, gradient=sg.gradients.ASSG(start_from_first=True)
        )
        .broken.float()
        .mean()
    )


def loss_there(net: Classifier, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(ce(net(disturbed(net, x, y)), y).mean())


def spread(net: Classifier, x: Tensor, y: Tensor) -> float:
    """How far the steps' readouts lie apart, over the temperature of their mean."""
    with torch.no_grad():
        z = net(x, per_step=True)
    return float(divergence(z.mean(0)[None].expand_as(z), z).mean())


def stretched(net: Classifier, x: Tensor, y: Tensor) -> float:
    """How far the singular values of the convolutions lie from 1."""
    return sum(
        float((torch.linalg.svdvals(conv_of(s).weight.detach().flatten(1)) - 1).abs().mean())
        for s in stages_of(net)
    )


def misfit(net: Classifier, x: Tensor, y: Tensor) -> float:
    """How far the width of the surrogate lies from the mean of |u|, as a ratio."""
    with torch.no_grad(), sg.tap(net) as t:
        net(x)
    return sum(
        abs(math.log(layer.spec.surrogate.sharpness * float(t.potentials[name].abs().mean())))
        for name, layer in spiking(net).items()
    )


def kept_open(net: Classifier, x: Tensor, y: Tensor) -> float:
    return float(
        torch.cat(
            [as_a(Gates, layer.dynamics[0]).keep.detach().flatten() for layer in spiking(net).values()]
        ).mean()
    )


def drawn_loss(net: Classifier, x: Tensor, y: Tensor) -> float:
    seed_noise(net, 7)
    with torch.no_grad():
        return float(torch.stack([ce(net(x), y).mean() for _ in range(10)]).mean())


def under_noise_of_neurons(net: Classifier, x: Tensor, y: Tensor) -> float:
    net = copy.deepcopy(net)
    for layer in spiking(net).values():
        layer.noise = Noise(0.4, at_eval=True)
    return drawn_loss(net, x, y)


def under_noise_of_the_image(net: Classifier, x: Tensor, y: Tensor) -> float:
    return drawn_loss(net, x + 0.4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), y)


def under_two_gray_levels(net: Classifier, x: Tensor, y: Tensor) -> float:
    return drawn_loss(net, (x > torch.rand(x.shape, generator=torch.Generator().manual_seed(1))).float(), y)


def under_random_decays(net: Classifier, x: Tensor, y: Tensor) -> float:
    net = copy.deepcopy(net)
    if not any(len(layer.dynamics) for layer in spiking(net).values()):
        sg.defenses.RandHet(sigma=2.0).prepare(net)
    return drawn_loss(net, x, y)


def dominance(net: Classifier, x: Tensor, y: Tensor) -> float:
    """

    Share of the largest singular value in how far the convolutions have moved since the start of the
    training.
    """
    start = make_network(little_recipe(options={"width": 4}), sg.load_data("embedded"))
    moved = [
        (conv_of(a).weight - conv_of(b).weight).detach().flatten(1)
        for a, b in zip(stages_of(net), stages_of(start), strict=True)
    ]
    shares = [torch.linalg.svdvals(m).square() for m in moved]
    return sum(float(s[0] / s.sum()) for s in shares) / len(shares)


AT = sg.AT(eps=EPS, steps=1)
CLAIMS: dict[str, tuple[tuple[Defense, ...], tuple[Defense, ...], Measure, dict[str, object]]] = {
    "AT": ((), (AT,), broken, {}),
    "TRADES": ((), (sg.TRADES(eps=EPS),), gap, {}),
    "MART": ((), (sg.defenses.MART(eps=EPS),), loss_there, {"side": 28}),
    "AT crafted by ASSG": ((), (sg.AT(eps=EPS, estimators=("assg",)),), broken_by_assg, {}),
    "TemporalEnsemble": (
        (AT,),
        (sg.defenses.TemporalEnsemble(eps=EPS, steps=1, consistency=3.0),),
        spread,
        {"loss": "per_step"},
    ),
    "RAT": ((), (sg.RAT(beta=0.02),), stretched, {}),
    "SR": ((), (sg.defenses.SR(weight=0.1),), slope, {}),
    "MPPD l2": ((), (sg.defenses.MPPD(rho=20.0, eps=EPS, step_size=EPS),), difference, {}),
    "MPPD l1": ((), (sg.defenses.MPPD(rho=20.0, norm="l1", eps=EPS, step_size=EPS),), difference, {}),
    "MPD-SGR": ((), (sg.defenses.MPDSGR(eta=5.0),), mass, {}),
    "MPD-SGR through batch norm": ((), (sg.defenses.MPDSGR(eta=5.0, moments="batch norm"),), mass, {}),
    "ShiftGuard": ((), (sg.defenses.ShiftGuard(lambda_max=10.0, eps=EPS, step_size=EPS),), within_shift, {}),
    "FirstLayerGuard": ((), (sg.defenses.FirstLayerGuard(lambda_max=10.0, eps=EPS),), within_reach, {}),
    "NLIF": ((), (sg.TGO(lambda_max=0.0, sigma=0.4),), under_noise_of_neurons, {"side": 28}),
    "InputNoise": ((), (sg.defenses.InputNoise(sigma=0.4),), under_noise_of_the_image, {}),
    "InputQuantization": ((), (sg.defenses.InputQuantization(levels=2),), under_two_gray_levels, {}),
    "RandHet": ((), (sg.defenses.RandHet(sigma=2.0),), under_random_decays, {}),
    "NFGSM": ((), (sg.defenses.NFGSM(eps=EPS),), broken, {}),
    "PGI": ((), (sg.defenses.PGI(eps=EPS, pull=1.0),), broken, {}),
    "DSD": ((), (sg.defenses.DSD(),), dominance, {}),
    "Distillation": ((), (sg.defenses.Distillation(eps=EPS),), broken, {}),
    "AT that grows": (
        (sg.AT(eps=EPS / 4, steps=1),),
        (sg.AT(eps=EPS / 4, eps_end=2 * EPS, steps=1, late_steps=4, late_share=0.5),),
        gap,
        {},
    ),
    "FittedSurrogate": ((), (sg.defenses.FittedSurrogate(),), misfit, {}),
    "StoG": ((sg.defenses.StoG(gamma=0.0),), (sg.defenses.StoG(gamma=1e-2),), kept_open, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_a_defense_lowers_what_it_is_meant_to_lower(
    name: str, trained: Trained, data: Dataset, large: Dataset
) -> None:
    without, with_it, measure, changes = CLAIMS[name]
    x, y = images(large if changes.get("side") == 28 else data)
    before, after = measure(trained(*without, **changes), x, y), measure(trained(*with_it, **changes), x, y)
    assert after < 0.97 * before, f"{before:.4g} without, {after:.4g} with it"


@pytest.mark.parametrize("name", DEFENSES)
def test_every_defense_trains_by_its_defaults_and_is_loaded_as_it_was(
    name: str, little_data: Dataset, tmp_path: Path
) -> None:
    loss = "tet" if name == "temporal_ensemble" else "mean"
    recipe = little_recipe(
        defenses=(DEFENSES[name](),), epochs=1, options={"width": 2}, loss=loss, timesteps=4
    )
    run = train(recipe, tmp_path / "run", data=little_data)
    assert all(bool(torch.isfinite(v).all()) for v in run.net.state_dict().values())
    x, loaded = little_data.test.pixels()[:20], sg.load(tmp_path / "run")
    for net in (run.net, loaded):
        seed_noise(net, 1)
    assert torch.equal(run.net(x), loaded(x))


@pytest.mark.slow
def test_the_constraint_keeps_potentials_away_beyond_what_scale_does(
    trained: Trained, large: Dataset
) -> None:
    x, y = images(large)
    plain, guarded = trained(side=28), trained(sg.TGO(lambda_max=2.0, sigma=0.0), side=28)
    share = neighbors(guarded, x, 0.2).mean
    assert share < neighbors(plain, x, 0.2).mean
    scaled, factor = gain_scaled(plain, x, share, 0.2)
    assert factor > 1
    with torch.no_grad():
        right = [float((net(x).argmax(1) == y).float().mean()) for net in (guarded, scaled)]
    assert right[0] > right[1]  # scale alone costs accuracy that the constraint does not


@pytest.mark.slow
def test_parameters_of_the_neurons_are_trained(trained: Trained) -> None:
    gains = [as_a(Gains, layer.dynamics[0]).gain for layer in spiking(trained(sg.defenses.DLIF())).values()]
    assert all(bool((g != 1).any()) for g in gains)
    leaks = [
        as_a(Leaks, layer.dynamics[0]).leak
        for layer in spiking(trained(sg.defenses.FEEL(radii=(0.5, 0.3)))).values()
    ]
    assert all(bool((leak != 1).any()) for leak in leaks)
    for layer in spiking(trained(sg.defenses.HoSNN())).values():
        moving = as_a(Homeostatic, layer.dynamics[0])
        assert bool(moving.moves)
        assert float(moving.goal.abs().sum()) > 0
        assert bool((moving.rate != 0.2).any())
    keeps = [
        as_a(Gates, layer.dynamics[0]).keep
        for layer in spiking(trained(sg.defenses.StoG(gamma=0.0))).values()
    ]
    assert any(bool((keep < 1).any()) for keep in keeps)  # by the task's loss alone


@pytest.mark.slow
def test_a_converted_network_does_what_it_did_before(data: Dataset) -> None:
    """

    The weights give nearly the same classes as spikes and as the activations that most of the training went
    through.
    """
    from spikeguard.defenses.conversion import Analog

    net = train(
        little_recipe(
            defenses=(sg.defenses.Conversion(share=0.75),), epochs=4, options={"width": 4}, timesteps=8
        ),
        data=data,
    ).net
    x, y = images(data)
    with torch.no_grad():
        spikes = net(x).argmax(1)
        net.timesteps = 1
        for layer in spiking(net).values():
            layer.dynamics.append(Analog(8, 1.0))
        analog = net(x).argmax(1)
    assert float((spikes == y).float().mean()) > 0.4
    assert float((spikes == analog).float().mean()) > 0.7


@pytest.mark.slow
def test_early_stopping_keeps_the_most_robust_epoch_and_says_so(data: Dataset) -> None:
    run_recipe = little_recipe(defenses=(AT, sg.defenses.EarlyStopping(eps=EPS, steps=5)), epochs=4, lr=0.4)
    run = train(run_recipe, data=data)
    robust = [as_a(float, row.measured["validation_robust_accuracy"]) for row in run.record.epochs]
    kept = [row.measured["kept"] for row in run.record.epochs]
    assert max(k for k, chosen in enumerate(kept) if chosen) == robust.index(max(robust))
    held = training_parts(run_recipe, data)[1]
    got = sg.sapgd(
        run.net,
        held.pixels(),
        held.y,
        sg.Linf(EPS),
        steps=5,
        restarts=1,
        gradient=sg.gradients.ASSG(start_from_first=True),
    )
    assert float((~got.broken).float().mean()) == pytest.approx(max(robust), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ema",
        "early_stopping",
        "shift_guard",
        "hosnn",
        "at + conversion",
        "stog + feel",
        "randhet",
        "input_noise",
        "sr",
        "rat",
        "distillation + input_noise",
        "fitted_surrogate",
        "pgi + awp + ema + overfitting_stop",
    ],
)
def test_a_training_with_it_resumes_to_the_same_bits(
    name: str, tmp_path: Path, little_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of the second epoch, and again at its end."""
    monkeypatch.setattr(fitted, "EVERY", 3)
    settings: dict[str, dict[str, Any]] = {
        "distillation": {"steps": 1, "share": 0.6},
        "feel": {"radii": (0.5, 0.3)},
        "at": {"steps": 1},
        "overfitting_stop": {"images": 10, "steps": 2},
    }
    chosen = tuple(DEFENSES[part](**settings.get(part, {})) for part in name.split(" + "))
    recipe = little_recipe(defenses=chosen, epochs=3, options={"width": 2})
    whole = train(recipe, tmp_path / "whole", data=little_data)
    seen: list[Report] = []

    def interrupt(report: Report) -> None:
        seen.append(report)
        if len(seen) in (13, 18):
            stopped.set()

    stopped = threading.Event()
    monkeypatch.setattr(loop, "ctrl_c", lambda: nullcontext(stopped))
    for resume, steps in ((False, 13), (True, 18)):
        with pytest.raises(Interrupted):
            train(recipe, tmp_path / "broken", resume, data=little_data, progress=interrupt)
        assert len(seen) == steps
        stopped.clear()
    again = train(recipe, tmp_path / "broken", resume=True, data=little_data)
    a, b = whole.net.state_dict(), again.net.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a), [k for k in a if not torch.equal(a[k], b[k])]
    x = little_data.test.pixels()[:20]
    loaded = sg.load(tmp_path / "broken")
    for net in (whole.net, loaded):
        seed_noise(net, 1)
    assert torch.equal(whole.net(x), loaded(x))
