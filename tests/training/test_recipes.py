"""Recipes: named ones, TOML, flags, and what is said to those that are wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import little_recipe
from narrow import as_a

import spikeguard as sg
from spikeguard.data.images import Dataset
from spikeguard.errors import UserError
from spikeguard.training.checkpoint import load_tensors, save_tensors
from spikeguard.training.load import load_with_recipe
from spikeguard.training.loop import train
from spikeguard.training.recipes import RECIPES
from spikeguard.training.settings import ALIASES, describe, override


def test_every_named_recipe_survives_writing_and_reading() -> None:
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
def test_wrong_fields_are_named_with_what_is_allowed(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        sg.Recipe.of(values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_flags_change_no_recipe_but_their_own() -> None:
    values = RECIPES["vanilla"].values()
    override(values, "options.width", "3")
    assert RECIPES["vanilla"].options == RECIPES["tgo"].options == {"width": 16}


def test_recipes_from_python_are_checked_too() -> None:
    cases: tuple[dict[str, Any], ...] = (
        {"precision": "bf16"},
        {"loss": "mse"},
        {"defenses": (sg.TGO(), sg.TGO(delta=0.9))},
    )
    for wrong in cases:
        with pytest.raises(UserError):
            sg.Recipe(**wrong)
    recipe = sg.Recipe(network="vgg11", options={"hidden": (16, 16)})
    assert sg.Recipe.of(json.loads(json.dumps(recipe.values()))) == recipe


def test_flags_reach_inner_fields_and_change_choices() -> None:
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
    assert as_a(sg.TGO, recipe.defenses[0]).delta == 0.4
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
def test_recipe_options_train(little_data: Dataset, changes: dict[str, object]) -> None:
    run = train(little_recipe(**changes), data=little_data)
    rows = run.record.epochs
    assert rows[-1].loss < rows[0].loss


@pytest.mark.parametrize("name", ["encoding", "seed", "strength"])
def test_an_option_that_the_network_lacks_is_refused(little_data: Dataset, name: str) -> None:
    with pytest.raises(UserError, match=f"small has no option '{name}'"):
        train(little_recipe(options={name: 1}), data=little_data)


def test_recipes_with_old_names_are_read() -> None:
    values = sg.Recipe(defenses=(sg.defenses.InputQuantization(levels=5),)).values()
    for old, new in ALIASES.items():
        *path, last = new.split(".")
        held: dict[str, Any] = values
        for name in path:
            held = held[name]
        held[old.rpartition(".")[2]] = held.pop(last)
    assert "input_quantisation" in as_a(dict, values["defenses"])
    assert sg.Recipe.of(values).defenses == (sg.defenses.InputQuantization(levels=5),)


def test_a_weights_file_with_an_old_recipe_loads(little_data: Dataset, tmp_path: Path) -> None:
    recipe = little_recipe(epochs=1, train_images=100, defenses=(sg.defenses.InputQuantization(levels=5),))
    train(recipe, tmp_path / "run", data=little_data)
    tensors, metadata = load_tensors(tmp_path / "run" / "weights.safetensors")
    path = tmp_path / "weights.safetensors"  # alone: a record beside it knows the weights by their digest
    old = json.loads(json.dumps(metadata).replace("input_quantization", "input_quantisation"))
    assert old != metadata
    save_tensors(path, tensors, old)
    assert load_with_recipe(path)[1].defenses == recipe.defenses


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("defenses.at.eps", "2/255", 2 / 255),
        ("defenses.at.eps", " 2 / 255 ", 2 / 255),
        ("defenses.at.step_size", "1/255", 1 / 255),
        ("defenses.feel.radii", "[1/2, 3/8, 0.25, 1/5]", (0.5, 0.375, 0.25, 0.2)),
    ],
)
def test_fractions_are_numbers(flag: str, text: str, value: float | tuple[float, ...]) -> None:
    values = sg.Recipe().values()
    override(values, flag, text)
    (defense,) = sg.Recipe.of(values).defenses
    assert getattr(defense, flag.rpartition(".")[2]) == value


def test_a_fraction_stays_text_where_text_belongs() -> None:
    values = sg.Recipe().values()
    override(values, "name", "1/2")
    assert sg.Recipe.of(values).name == "1/2"


def test_on_and_off_add_and_remove_a_defense() -> None:
    values = sg.Recipe().values()
    override(values, "defenses.at", "on")
    assert sg.Recipe.of(values).defenses == (sg.AT(),)
    override(values, "defenses.at.eps", "0.1")
    override(values, "defenses.at", "on")  # it is
    assert sg.Recipe.of(values).defenses == (sg.AT(eps=0.1),)
    for name in ("at", "tgo"):  # the second one is not there
        override(values, f"defenses.{name}", "off")
    assert sg.Recipe.of(values).defenses == ()
    override(values, "augment", "off")
    assert sg.Recipe.of(values).augment is False
    assert sg.Recipe.of({"defenses": {"rat": "on"}}).defenses == (sg.RAT(),)


@pytest.mark.parametrize(
    ("flag", "near"),
    [
        ("epoch", "epochs"),
        ("neuron.decai", "decay"),
        ("defenses.tggo.delta", "tgo"),
        ("defenses.at.epss", "eps"),
        ("neuron.surrogate.atn.slope", "atan"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(flag: str, near: str) -> None:
    values = sg.Recipe().values()
    if "surrogate" in flag:
        as_a(dict, values["neuron"])["surrogate"] = {}
    override(values, flag, "1")
    with pytest.raises(UserError, match=f"did you mean '{near}'") as error:
        sg.Recipe.of(values)
    assert "\n" not in str(error.value)


def test_every_field_of_a_recipe_and_of_every_defense_explains_itself_in_a_line() -> None:
    rows = describe()
    flags = [row.flag for row in rows]
    assert len(flags) == len(set(flags))
    for row in rows:
        assert "\n" not in row.help
        assert row.help, f"{row.flag} has no explanation"
    by = {row.flag: row for row in rows}
    assert by["defenses.at.eps"].default == "8/255"
    assert by["defenses.distillation.clean_share"].default == "1/6"
    assert by["defenses.at.step_size"][1:3] == ("number | none", "none")
    assert by["defenses.mppd.eps"].help == by["defenses.at.eps"].help
    assert by["loss"].type == "mean | per_step | tet"
    values = sg.Recipe().values()
    for name in ("at", "feel"):  # a default as it is shown is a default as it is taken
        for row in rows:
            if row.flag.startswith(f"defenses.{name}."):
                override(values, row.flag, row.default)
    assert sg.Recipe.of(values).defenses == (sg.AT(), sg.defenses.FEEL())
