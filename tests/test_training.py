"""TGO, adversarial training, recipes, and runs that are stopped, killed, resumed and refused."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import little_recipe

import spikeguard as sg
from spikeguard.defenses import Step, View
from spikeguard.errors import Interrupted, SpikeguardWarning, UserError
from spikeguard.neurons import spiking
from spikeguard.records import read_json
from spikeguard.study.recipes import RECIPES
from spikeguard.training import loop
from spikeguard.training.checkpoint import METRICS, RECORD, STATE, WEIGHTS, load_tensors
from spikeguard.training.loop import train
from spikeguard.training.objective import task_loss
from spikeguard.training.settings import override


def weights(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# TGO


@pytest.mark.parametrize("side", ["both", "below"])
def test_penalty_is_the_formula_summed_over_layers(tiny, side):
    guard = sg.TGO(delta=0.5, lambda_max=0.4, sigma=0.0, side=side)
    hooks = guard.start(tiny)
    x = torch.rand(6, 1, 8, 8)
    hooks.complete(Step(tiny, x, torch.zeros(6).long()))
    with hooks.watch(tiny, "clean"):
        tiny(x)
    with sg.tap(tiny) as t:
        tiny(x)
    expected = 0.0
    for u in t.potentials.values():
        steps, samples = u.shape[:2]
        terms = [max(0.0, 0.5 - abs(v)) for v in u.flatten().tolist() if side == "both" or v < 0]
        expected += sum(terms) / (steps * samples * u[0, 0].numel())
    assert float(hooks.penalty(Step(tiny, x, torch.zeros(6).long(), progress=1.0)).detach()) == pytest.approx(0.4 * expected, rel=1e-5)


def test_gradient_of_the_penalty_pushes_potentials_away_from_the_threshold():
    layer = sg.LIF(decay=0.0)
    current = torch.tensor([[[0.7, 0.9, 1.1, 1.3, 2.0]]], requires_grad=True)
    with sg.tap(layer, band=sg.Band(0.25)) as t:
        layer(current)
    (gradient,) = torch.autograd.grad(t.penalties[""], current)
    assert gradient.flatten().tolist() == pytest.approx([0, 0.2, -0.2, 0, 0])


def test_lambda_rises_by_cosine():
    guard = sg.TGO(lambda_max=0.6)
    assert [guard.weight(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.3, 0.6])
    assert guard.weight(0.25) == pytest.approx(0.3 * (1 - 2**-0.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delta": 0.0}, "delta"),
        ({"delta": -1.0}, "delta"),
        ({"sigma": -0.1}, "sigma"),
        ({"lambda_max": -1.0}, "lambda_max"),
        ({"side": "up"}, "side"),
    ],
)
def test_nonsense_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        sg.TGO(**settings)


def test_much_noise_against_a_narrow_band_is_warned_of_with_the_reason():
    with pytest.warns(SpikeguardWarning, match="raises it for neurons that the constraint has pushed out"):
        sg.TGO(delta=0.2, sigma=0.1)
    sg.TGO(delta=0.2, sigma=0.1, lambda_max=0.0)  # without the constraint there is nothing to contradict


def test_both_parts_can_be_switched_on_alone(tiny):
    noise_only, constraint_only = sg.TGO(lambda_max=0.0, sigma=0.1), sg.TGO(sigma=0.0)
    constraint_only.prepare(tiny)
    assert all(layer.noise is None for layer in spiking(tiny).values())
    assert noise_only.start(tiny).penalty(Step(tiny, torch.rand(1, 1, 8, 8), torch.zeros(1).long())) is None
    noise_only.prepare(tiny)
    assert all(layer.noise == sg.Noise(0.1) for layer in spiking(tiny).values())


@pytest.mark.parametrize(
    ("sees", "crafted", "read"),
    [
        ("trained", True, ["adversarial"]),
        ("trained", False, ["clean"]),
        ("clean", True, ["clean"]),
        ("adversarial", True, ["adversarial"]),
        ("both", True, ["adversarial", "clean"]),
    ],
)
def test_the_constraint_reads_the_forward_passes_that_its_field_names(tiny, sees, crafted, read):
    hooks = sg.TGO(sees=sees, sigma=0.0).start(tiny)
    x = torch.rand(4, 1, 8, 8)
    views = {"adversarial": View(x + 0.1, 1.0)} if crafted else {"clean": View(x, 1.0)}
    step = Step(tiny, x, torch.arange(4), views=views)
    hooks.complete(step)
    seen = []
    for name, view in step.views.items():
        with hooks.watch(tiny, name):
            tiny(view.x.clamp(0, 1))
        if hooks.tap.penalties:
            seen.append(name)
            hooks.tap.clear()
    assert seen == read


def test_a_constraint_on_adversarial_passes_without_adversarial_training_is_refused(little_data):
    with pytest.raises(UserError, match="needs adversarial training"):
        train(little_recipe(defenses=(sg.TGO(sees="adversarial", sigma=0.0),)), data=little_data)


@pytest.mark.slow
def test_tgo_moves_potentials_and_adversarial_training_helps(little_data):
    """On 500 images: fewer potentials in the band than without; and more robust accuracy with adversarial training than without."""
    share, robust = {}, {}
    x, y = little_data.test.pixels(), little_data.test.y
    for name, defenses in {"vanilla": (), "mc": (sg.TGO(lambda_max=2.0, sigma=0.0),), "at": (sg.AT(eps=16 / 255),)}.items():
        net = train(little_recipe(defenses=defenses, epochs=12, options={"width": 8}, augment=False), data=little_data).net
        with torch.no_grad(), sg.tap(net) as t:
            net(x)
        share[name] = sum(float((u.abs() < 0.5).float().mean()) for u in t.potentials.values())
        got = sg.pgd(net, x, y, sg.Linf(16 / 255), steps=10, restarts=1, gradient=sg.swap(sg.Atan(8.0)))
        robust[name] = 1 - float(got.broken.float().mean())
    assert share["mc"] < 0.9 * share["vanilla"]
    assert robust["at"] > robust["vanilla"] + 0.05


# recipes


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
    for flag, text in [("neuron.decay", "0.9"), ("neuron.surrogate.triangle.width", "0.5"), ("defenses.tgo.delta", "0.4"), ("batch-size", "32")]:
        override(values, flag, text)
    recipe = sg.Recipe.of(values)
    assert recipe.neuron.decay == 0.9
    assert recipe.neuron.surrogate == sg.Triangle(0.5)
    assert recipe.defenses[0].delta == 0.4
    assert recipe.batch_size == 32
    override(values, "defenses.tgo", "off")
    assert sg.Recipe.of(values).defenses == ()


# runs


def test_a_run_can_be_loaded_and_gives_the_same_logits(little_data, tmp_path):
    run = train(little_recipe(defenses=(sg.TGO(),)), tmp_path / "r", data=little_data)
    x = little_data.test.pixels()
    for target in (tmp_path / "r", tmp_path / "r" / WEIGHTS):
        net = sg.load(target)
        assert torch.equal(net(x), run.net(x))
        assert all(layer.noise == sg.Noise(0.1) for layer in spiking(net).values())
    record = read_json(tmp_path / "r" / RECORD)
    assert record["recipe"] == run.metrics["recipe"]
    assert len((tmp_path / "r" / METRICS).read_text().splitlines()) == 2
    assert not (tmp_path / "r" / STATE).exists()
    assert record["conditions"]["threads"] == 2


@pytest.mark.parametrize(
    "defenses",
    [(), (sg.AT(steps=1), sg.TGO(sees="both")), pytest.param((sg.TGO(),), marks=pytest.mark.compiled)],
    ids=["none", "at+tgo", "tgo, compiled"],
)
def test_a_stopped_run_resumes_to_the_same_bits(little_data, tmp_path, defenses):
    recipe = little_recipe(defenses=defenses, options={"width": 4}, neuron=sg.Neuron(kind="plif", decay=0.5, learn_threshold=True))
    whole = train(recipe, tmp_path / "whole", data=little_data)
    for stop_at in (3, 12):  # inside the first epoch, then inside the second

        def stop(report, stop_at=stop_at):
            if report.step == stop_at:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(Interrupted, match="go on with --resume"):
            train(recipe, tmp_path / "broken", resume=stop_at > 3, data=little_data, progress=stop)
    resumed = train(recipe, tmp_path / "broken", resume=True, data=little_data)
    assert same(weights(whole.net), weights(resumed.net))
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in whole.metrics["epochs"]]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in resumed.metrics["epochs"]]


KILLED = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(2)
from conftest import little_recipe
from spikeguard.data.images import Dataset
from spikeguard.data.sources import load_data
from spikeguard.training.loop import train
import spikeguard as sg
data = load_data("embedded")
little = Dataset("little", data.train.balanced(500), data.test.balanced(100), data.classes, data.mean, data.std)
tell = lambda report: print(report.step, flush=True)
train(little_recipe(defenses=(sg.TGO(),), epochs=4), {out!r}, resume=True, data=little, progress=tell, save_every=3)
"""


@pytest.mark.slow
@pytest.mark.compiled  # the killed process compiles what is worth it: the unbroken run has to take the same path
def test_a_run_killed_at_random_steps_resumes_to_the_same_bits(little_data, tmp_path):
    whole = train(little_recipe(defenses=(sg.TGO(),), epochs=4), data=little_data)
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path / "k"))
    steps = torch.randint(1, 12, (3,), generator=torch.Generator().manual_seed(0)).tolist()
    for kill_after in steps:
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            for count, _ in enumerate(process.stdout, 1):
                if count >= kill_after:
                    process.kill()
                    break
            assert process.wait(60) == -signal.SIGKILL, "it ended before it could be killed"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)
    assert same(weights(whole.net), load_tensors(tmp_path / "k" / WEIGHTS)[0])


def test_resuming_under_other_conditions_is_refused(little_data, tmp_path):
    def stop(report):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(little_recipe(), tmp_path / "r", data=little_data, progress=stop)
    with pytest.raises(UserError, match="resume with the same"):
        train(little_recipe(lr=0.2), tmp_path / "r", resume=True, data=little_data)
    torch.set_num_threads(1)
    with pytest.raises(UserError, match="threads = 2, now threads = 1"):
        train(little_recipe(), tmp_path / "r", resume=True, data=little_data)
    with pytest.raises(UserError, match="unfinished run"):
        sg.load(tmp_path / "r")


def test_an_existing_run_is_not_overwritten(little_data, tmp_path):
    train(little_recipe(epochs=1), tmp_path / "r", data=little_data)
    before = (tmp_path / "r" / WEIGHTS).read_bytes()
    for resume in (False, True):
        with pytest.raises(UserError, match="finished run"):
            train(little_recipe(), tmp_path / "r", resume=resume, data=little_data)
    assert (tmp_path / "r" / WEIGHTS).read_bytes() == before


def test_a_checkpoint_of_another_network_is_refused(little_data, tmp_path):
    train(little_recipe(epochs=1), tmp_path / "a", data=little_data)
    tensors, metadata = load_tensors(tmp_path / "a" / WEIGHTS)
    from spikeguard.training.checkpoint import save_tensors

    metadata["recipe"]["options"] = {"width": 8}
    save_tensors(tmp_path / "b.safetensors", tensors, metadata)
    with pytest.raises(UserError, match="checkpoint of another network"):
        sg.load(tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes((tmp_path / "a" / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        sg.load(tmp_path / "c.safetensors")
    with pytest.raises(UserError, match="neither a run folder nor a weights file"):
        sg.load("no-such-thing")


def test_a_loss_that_is_not_finite_stops_with_one_line_and_no_result(little_data, tmp_path):
    with pytest.raises(UserError, match=r"the loss is (nan|inf)"):
        train(little_recipe(lr=1e30, warmup=0.0, epochs=4), tmp_path / "r", data=little_data)
    assert not (tmp_path / "r" / WEIGHTS).exists()


def test_weights_that_are_not_finite_are_never_saved(little_data, tmp_path, monkeypatch):
    """Spikes of a network full of NaN are zeros, so its loss stays finite: the weights themselves are looked at."""

    def spoil(report):
        with torch.no_grad():
            spoiled[0].fill_(float("nan"))

    from spikeguard.training import loop

    spoiled, original = [], loop.make_network
    monkeypatch.setattr(loop, "make_network", lambda *a: (net := original(*a), spoiled.append(next(net.parameters())))[0])
    with pytest.raises(UserError, match="not finite"):
        train(little_recipe(epochs=1), tmp_path / "r", data=little_data, progress=spoil)
    assert not (tmp_path / "r" / WEIGHTS).exists()


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    from spikeguard import records

    target = tmp_path / "r.json"
    target.write_text("{}")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        records.write_json(target, {"a": 1})
    assert target.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [target]


def test_an_unwritable_folder_is_found_out_before_the_first_epoch(little_data, tmp_path):
    (tmp_path / "file").write_text("")
    begun = time.perf_counter()
    with pytest.raises(UserError, match="cannot write"):
        train(little_recipe(epochs=100), tmp_path / "file" / "r", data=little_data)
    assert time.perf_counter() - begun < 5


def test_tet_is_its_formula():
    logits, y = torch.randn(3, 5, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 9, 9, 1])
    total = 0.0
    for z in logits:
        for row, label in zip(z.tolist(), y.tolist(), strict=True):
            entropy = math.log(sum(math.exp(v) for v in row)) - row[label]
            total += 0.999 * entropy + 0.001 * sum((v - 1) ** 2 for v in row) / 10
    assert float(task_loss("tet", logits, y)) == pytest.approx(total / 15)


@pytest.mark.parametrize(
    "changes", [{"loss": "per_step"}, {"loss": "tet"}, {"precision": "bfloat16"}, {"channels_last": False}, {"train_images": 200}]
)
def test_recipe_options_train(little_data, changes):
    run = train(little_recipe(**changes), data=little_data)
    rows = run.metrics["epochs"]
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize(("defenses", "held", "told"), [((sg.AT(steps=1),), 0.0, True), ((sg.AT(steps=1),), 1.0, False), ((), 0.0, False)])
def test_adversaries_that_are_easier_than_clean_images_are_told(little_data, monkeypatch, caplog, defenses, held, told):
    monkeypatch.setattr(loop, "accuracy", lambda net, images: held)
    with caplog.at_level("WARNING", "spikeguard"):
        train(little_recipe(defenses=defenses, validation=0.2), data=little_data)
    assert ("catastrophic overfitting" in caplog.text) == told


def test_training_draws_nothing_from_the_global_generator(little_data):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(weights(train(little_recipe(defenses=(sg.TGO(), sg.AT(steps=1)), epochs=1), data=little_data).net))
    assert same(*states)
