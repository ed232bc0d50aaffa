"""Named recipes. ``spikeguard train NAME`` starts from one; flags and TOML files change single fields."""

from __future__ import annotations

from dataclasses import replace

from spikeguard.defenses import AT, RAT, TGO, Conversion
from spikeguard.errors import unknown
from spikeguard.neurons import Neuron
from spikeguard.surrogates import Atan, Triangle
from spikeguard.training.recipe import Recipe

_DEMO = Recipe(
    name="vanilla",
    options={"width": 16},
    neuron=Neuron(decay=0.5, detach_reset=True, surrogate=Atan(2.0)),
    validation=0.05,
    augment=False,
    epochs=4,
)
_CIFAR = replace(
    _DEMO,
    name="cifar10-small",
    data="cifar10",
    options={"width": 32},
    validation=0.1,
    augment=True,
    epochs=10,
)
# the common ground of the literature on robust spiking networks (no leak, hard reset, triangle of width 1)
_FAMILY = Recipe(
    name="cifar10-vgg11",
    data="cifar10",
    network="vgg11",
    neuron=Neuron(decay=1.0, surrogate=Triangle(1.0)),
    epochs=200,
    batch_size=64,
    warmup=0.0,
)
_GUARD = TGO(delta=0.5, lambda_max=0.6, sigma=0.1)
DEMO_GUARD = replace(
    _GUARD, lambda_max=1.0
)  # three layers only: a smaller sum over layers than in the networks of the paper

RECIPES = {
    r.name: r
    for r in (
        _DEMO,
        replace(_DEMO, name="tgo", defenses=(DEMO_GUARD,)),
        replace(_DEMO, name="mc", defenses=(replace(DEMO_GUARD, sigma=0.0),)),
        replace(_DEMO, name="nlif", defenses=(replace(DEMO_GUARD, lambda_max=0.0),)),
        replace(_DEMO, name="at", defenses=(AT(),)),
        replace(_DEMO, name="at-tgo", defenses=(AT(), DEMO_GUARD)),
        replace(
            _DEMO,
            name="robust",
            defenses=(AT(eps=16 / 255, warmup=0.25), Conversion(share=0.0), RAT(), DEMO_GUARD),
        ),  # the best of the study
        _CIFAR,
        replace(_CIFAR, name="cifar10-small-tgo", defenses=(DEMO_GUARD,)),
        _FAMILY,
        replace(_FAMILY, name="cifar10-vgg11-tgo", defenses=(_GUARD,)),
        replace(
            _FAMILY,
            name="cifar10-vgg11-at-tgo",
            defenses=(AT(eps=2 / 255, steps=2, step_size=1 / 255), _GUARD),
        ),
        replace(_FAMILY, name="cifar10-wrn16", network="wrn16"),
        replace(
            _FAMILY, name="cifar10-wrn16-tgo", network="wrn16", defenses=(replace(_GUARD, lambda_max=0.4),)
        ),
    )
}


def recipe(name: str) -> Recipe:
    """A named recipe; UserError lists the known ones."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES, more="; or the path of a .toml file")
    return RECIPES[name]
