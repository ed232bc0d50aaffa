"""Recipes: named ones, TOML, flags, and what is said to those that are wrong."""

import pytest
from conftest import little_recipe

import spikeguard as sg
from spikeguard.errors import UserError
from spikeguard.training.loop import train
from spikeguard.training.recipes import RECIPES
from spikeguard.training.settings import override


def test_every_named_recipe_survives_writing_and_reading():
    for recipe in RECIPES.values():
        assert sg.Recipe.of(recipe.values()) == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown field 'epoch'"),
        ({"epochs": "many"}, "epochs = 'many' must be a whole number"),
        ({"epochs": 0}, "epochs = 0 must be at least 1"),
        ({"timesteps": 0}, "timesteps = 0 must be at least 1"),
        ({"neuron": {"decai": 1}}, "neuron: unknown field 'decai'"),
        ({"neuron": {"surrogate": "atn"}}, "unknown surrogate 'atn'"),
        ({"defenses": {"tgo": {"delta": -1}}}, "delta = -1.0"),
        ({"defenses": {"tgoo": {}}}, "unknown defense 'tgoo'"),
        ({"precision": "float16"}, "must be one of float32, bfloat16"),
        ({"lr": True}, "lr = True must be a number"),
    ],
)
def test_wrong_fields_are_named_with_what_is_allowed(values, message):
    with pytest.raises(UserError) as error:
        sg.Recipe.of(values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_flags_change_no_recipe_but_their_own():
    values = RECIPES["vanilla"].values()
    override(values, "options.width", "3")
    assert RECIPES["vanilla"].options == RECIPES["tgo"].options == {"width": 16}


def test_recipes_from_python_are_checked_too():
    for wrong in ({"precision": "bf16"}, {"loss": "mse"}, {"defenses": (sg.TGO(), sg.TGO(delta=0.9))}):
        with pytest.raises(UserError):
            sg.Recipe(**wrong)
    recipe = sg.Recipe(network="vgg11", options={"hidden": (16, 16)})
    import json

    assert sg.Recipe.of(json.loads(json.dumps(recipe.values()))) == recipe


def test_flags_reach_inner_fields_and_change_choices():
    values = RECIPES["tgo"].values()
    for flag, text in [
        ("neuron.decay", "0.9"),
        ("neuron.surrogate.triangle.width", "0.5"),
        ("defenses.tgo.delta", "0.4"),
        ("batch-size", "32"),
    ]:
        override(values, flag, text)
    recipe = sg.Recipe.of(values)
    assert recipe.neuron.decay == 0.9
    assert recipe.neuron.surrogate == sg.surrogates.Triangle(0.5)
    assert recipe.defenses[0].delta == 0.4
    assert recipe.batch_size == 32
    override(values, "defenses.tgo", "off")
    assert sg.Recipe.of(values).defenses == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "per_step"},
        {"loss": "tet"},
        {"precision": "bfloat16"},
        {"channels_last": False},
        {"train_images": 200},
    ],
)
def test_recipe_options_train(little_data, changes):
    run = train(little_recipe(**changes), data=little_data)
    rows = run.metrics["epochs"]
    assert rows[-1]["loss"] < rows[0]["loss"]
