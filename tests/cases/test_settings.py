"""Settings of the wrong type or out of range: each was accepted in silence once."""

import pytest
import torch
from narrow import wrong
from strangers import LINF, X, Y, net, refused

import spikeguard as sg
from spikeguard.attacks.loop import Attacked
from spikeguard.auditing.audit import Audit
from spikeguard.diagnosis.neighbors import neighbors
from spikeguard.gradients import SwapSurrogate
from spikeguard.networks.classifier import Classifier

NET = net()
SPIKING = sg.build("small", classes=4, in_shape=(1, 8, 8), timesteps=2, width=2).eval()
NAN, INF = float("nan"), float("inf")


def build(**changes: object) -> Classifier:
    return sg.build("small", **wrong({"classes": 4, "in_shape": (1, 28, 28), **changes}))


def pgd(**changes: object) -> Attacked:
    return sg.pgd(NET, X, Y, LINF, **wrong({"steps": 1, **changes}))


def audit(**changes: object) -> Audit:
    return sg.audit(NET, X, Y, LINF, **wrong({"effort": "quick", **changes}))


CALLS = {
    "momentum nan": (lambda: pgd(momentum=NAN), "pgd: momentum = nan"),
    "momentum inf": (lambda: pgd(momentum=INF), "pgd: momentum = inf"),
    "momentum -5": (lambda: pgd(momentum=-5), "pgd: momentum = -5"),
    "step size inf": (lambda: pgd(step_size=INF), "step_size = inf"),
    "step size nan": (lambda: pgd(step_size=NAN), "step_size = nan"),
    "steps 1.5": (lambda: pgd(steps=1.5), "steps = 1.5 must be a whole number"),
    "steps True": (lambda: pgd(steps=True), "steps = True"),
    "steps tensor": (lambda: pgd(steps=torch.ones(2)), "steps = a tensor"),
    "start text": (lambda: pgd(start="no"), "start = 'no' must be True or False"),
    "early stop 1": (lambda: pgd(early_stop=1), "early_stop = 1"),
    "loss 3": (lambda: pgd(loss=3), "loss = 3 must be text or a function"),
    "loss name": (lambda: pgd(loss="cd"), "unknown loss 'cd'"),
    "gradient text": (lambda: pgd(gradient="bpda"), "gradient = 'bpda'"),
    "gradient class": (lambda: pgd(gradient=sg.gradients.BPDA), "gradient = "),
    "an unknown argument": (lambda: pgd(step=3), "did you mean 'steps'?"),
    "a missing argument": (lambda: wrong(sg.pgd)(NET, X, Y), "missing a required argument: 'threat'"),
    "one argument too many": (lambda: wrong(sg.fgsm)(NET, X, Y, LINF, 3), "too many positional"),
    "targeted loss": (lambda: sg.targeted(NET, X, Y, LINF, loss=wrong("ce")), "loss = 'ce' must be one of"),
    "cw rate": (lambda: sg.cw(NET, X, Y, sg.L2(0.1), learning_rate=wrong("fast")), "learning_rate = 'fast'"),
    "seed x": (lambda: pgd(seed="x"), "seed = 'x' must be a whole number"),
    "seed 1.5": (lambda: pgd(seed=1.5), "seed = 1.5"),
    "seed nan": (lambda: sg.square(NET, X, Y, LINF, seed=wrong(NAN)), "seed = nan"),
    "seed None": (lambda: sg.rays(NET, X, Y, LINF, seed=wrong(None)), "seed = None"),
    "audit seed": (lambda: audit(seed=1.5), "audit: seed = 1.5"),
    "audit effort": (lambda: audit(effort="huge"), "effort = 'huge' must be one of quick"),
    "audit batch": (lambda: audit(batch_size=2.5), "batch_size = 2.5"),
    "audit extra": (lambda: audit(extra=3), "extra = 3"),
    "audit extra list": (lambda: audit(extra=["pgd"]), "extra = ['pgd']"),
    "audit out": (lambda: audit(out=3), "out = 3"),
    "audit progress": (lambda: audit(progress=True), "progress = True"),
    "audit stop": (lambda: audit(stop="now"), "stop = 'now'"),
    "audit origin": (lambda: audit(origin="mine"), "origin = 'mine'"),
    "band -1": (lambda: sg.neurons.Band(-1), "Band: delta = -1"),
    "band nan": (lambda: sg.neurons.Band(NAN), "Band: delta = nan"),
    "band side": (lambda: sg.neurons.Band(0.1, side=wrong("above")), "Band: side = 'above'"),
    "tap noise": (lambda: sg.tap(SPIKING, noise=wrong("x")), "tap: noise = 'x'"),
    "tap backward": (lambda: sg.tap(SPIKING, backward=wrong("x")), "tap: backward = 'x'"),
    "tap smooth relu": (lambda: sg.tap(SPIKING, smooth=True, relu=True), "smooth and relu"),
    "tap text": (lambda: sg.tap(SPIKING, relu=wrong("no")), "relu = 'no'"),
    "tap model": (lambda: sg.tap(wrong(3)), "tap: model = 3"),
    "tap noise -1": (lambda: sg.tap(SPIKING, noise=-1.0), "sigma = -1.0"),
    "swap None": (lambda: SwapSurrogate(wrong(None)), "SwapSurrogate: surrogate = None"),
    "swap class": (
        lambda: SwapSurrogate(wrong(sg.surrogates.Atan)),
        "SwapSurrogate: surrogate = ",
    ),
    "swap detach": (
        lambda: SwapSurrogate(sg.surrogates.Atan(), wrong("no")),
        "detach_reset = 'no'",
    ),
    "timesteps 1.5": (lambda: build(timesteps=1.5), "timesteps = 1.5"),
    "timesteps nan": (lambda: build(timesteps=NAN), "timesteps = nan"),
    "mean nan": (lambda: build(mean=NAN), "mean = nan"),
    "mean list": (lambda: build(mean=(NAN,)), "mean = (nan,)"),
    "std inf": (lambda: build(std=INF), "std = inf"),
    "std list": (lambda: build(std=[INF]), "std = [inf]"),
    "in shape": (lambda: build(in_shape=(True, 28, 28)), "in_shape = (True, 28, 28)"),
    "in shape text": (lambda: build(in_shape="1x28"), "in_shape = '1x28'"),
    "neuron": (lambda: build(neuron="lif"), "neuron = 'lif'"),
    "classes": (lambda: build(classes="10"), "classes = '10'"),
    "member": (lambda: sg.auditing.Member(wrong(5), wrong(5), wrong(5)), "Member: id = 5 must be text"),
    "recipe": (lambda: sg.Recipe(wrong(5)), "Recipe: "),
    "recipe defenses": (lambda: sg.Recipe(defenses=wrong("at")), "defenses = 'at'"),
    "at": (lambda: sg.AT(eps=wrong("8/255")), "AT: eps = '8/255'"),
    "at eval": (lambda: sg.Noise(0.1, at_eval=wrong("no")), "Noise: at_eval = 'no'"),
    "detach": (lambda: sg.Neuron(detach_reset=wrong("no")), "Neuron: detach_reset = 'no'"),
    "decay": (lambda: sg.LIF(decay=wrong("half")), "decay = 'half'"),
    "threshold": (lambda: sg.Neuron(threshold=10**400), "threshold = "),
    "eot": (lambda: sg.gradients.EOT(wrong(2.5)), "EOT: draws = 2.5"),
    "bpda": (lambda: sg.gradients.BPDA(surrogate=wrong("atan")), "BPDA: surrogate = 'atan'"),
    "assg": (lambda: sg.gradients.ASSG(strength=wrong("x")), "ASSG: strength = 'x'"),
    "transfer": (lambda: sg.gradients.Transfer(wrong(3)), "Transfer: source = 3"),
    "atan": (lambda: sg.surrogates.Atan(wrong("steep")), "Atan: slope = 'steep'"),
    "load": (lambda: sg.load(wrong(3)), "load: target = 3"),
    "load data": (lambda: sg.load_data(wrong(3)), "load_data: name = 3"),
    "train": (lambda: sg.train(wrong("tgo")), "train: recipe = 'tgo'"),
    "train resume": (lambda: sg.train(sg.Recipe(), resume=wrong("no")), "resume = 'no'"),
    "neighbors": (lambda: neighbors(SPIKING, X, delta=wrong("x")), "delta = 'x'"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_setting_that_is_none_is_refused_in_one_line(name: str) -> None:
    call, words = CALLS[name]
    refused(call, words)


def test_settings_that_are_meant_are_taken() -> None:
    assert sg.Noise(1).sigma == 1
    assert sg.Noise(0.1, noise_band=INF).noise_band == INF
    assert sg.neurons.Band(0.0).delta == 0
    assert isinstance(build(mean=[0.5], std=[1], timesteps=torch.tensor(2)).timesteps, int)
    pgd(seed=-(10**30), momentum=1, step_size=0)
