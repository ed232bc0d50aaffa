"""Every defense against a closed form or a plain loop that shares no code with it.

The interface, adversaries, parameters, SR.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import pytest
import torch
from conftest import little_recipe
from narrow import as_a, conv_of, present, stages_of
from plain import kl, logits, softmax
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.data.images import Dataset
from spikeguard.defenses import CRAFTING_GRADIENTS, DEFENSES, Defense, Step, parameters
from spikeguard.defenses.base import Hooks
from spikeguard.defenses.gradient import best_wrong, chance
from spikeguard.errors import UserError
from spikeguard.gradients.base import Estimator, Opened
from spikeguard.models import Model
from spikeguard.networks.classifier import Classifier
from spikeguard.networks.wrn import WRN, Block
from spikeguard.neurons import seed_noise
from spikeguard.training.recipe import Recipe

# the interface


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defense_has_a_name_in_recipes_an_adaptive_attack_and_a_docstring(name: str) -> None:
    kind = DEFENSES[name]
    assert all((kind.__doc__, kind.idea, kind.formula, kind.source, kind.row.name))
    assert all("\n" not in text for text in (kind.idea, kind.formula, kind.source))
    recipe = Recipe(defenses=(kind(),))
    assert Recipe.of(recipe.values()) == recipe
    assert getattr(sg.defenses, kind.__name__) is kind


def test_compose_refuses_what_cannot_go_together() -> None:
    assert sg.compose(sg.TGO(), sg.AT(), sg.RAT()) == (sg.TGO(), sg.AT(), sg.RAT())
    with pytest.raises(UserError, match="AT is named more than once"):
        sg.compose(sg.AT(), sg.AT(eps=0.1))
    with pytest.raises(UserError, match="AT and TRADES both set the training inputs"):
        sg.compose(sg.AT(), sg.TRADES())
    with pytest.raises(UserError, match="EMA and EarlyStopping both set the weights that are kept"):
        sg.compose(sg.defenses.EMA(), sg.defenses.EarlyStopping())
    with pytest.raises(UserError, match="DLIF and RandHet both set the neurons' gain"):
        sg.compose(sg.defenses.DLIF(), sg.defenses.RandHet())
    with pytest.raises(
        UserError, match="Conversion and Distillation both set the first part of the training"
    ):
        sg.compose(sg.defenses.Conversion(), sg.defenses.Distillation())
    sg.compose(sg.defenses.Conversion(share=0.0), sg.defenses.Distillation())
    for reading in (
        sg.defenses.MPPD(),
        sg.defenses.MPDSGR(),
        sg.defenses.ShiftGuard(),
        sg.defenses.FirstLayerGuard(),
        sg.defenses.FittedSurrogate(),
        sg.TGO(sigma=0.0),
    ):
        with pytest.raises(UserError, match="acts on potentials, and ANNTwin leaves none"):
            sg.compose(reading, sg.defenses.ANNTwin())
    with pytest.raises(UserError, match="no defense"):
        sg.compose(sg.AT)  # type: ignore[arg-type]
    sg.compose(
        sg.defenses.InputNoise(),
        sg.defenses.InputQuantization(),
        sg.defenses.StoG(),
        sg.defenses.FEEL(),
        sg.RAT(),
    )  # one after the other


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sg.AT(eps=2.0), "eps"),
        (lambda: sg.AT(steps=0), "steps"),
        (lambda: sg.defenses.Distillation(share=1.0), "share"),
        (lambda: sg.defenses.Distillation(clean_share=2.0), "clean_share"),
        (lambda: sg.defenses.Distillation(temperature=0.0), "temperature"),
        (lambda: sg.defenses.FittedSurrogate(reach=0.0), "reach"),
        (lambda: sg.AT(estimators=("foo",)), "estimators"),
        (
            lambda: sg.AT(noise="loud"),  # type: ignore[arg-type]
            "noise",
        ),
        (lambda: sg.TRADES(beta=0.0), "beta"),
        (lambda: sg.RAT(beta=1.0), "beta"),
        (lambda: sg.defenses.SR(h=0.0), "h ="),
        (lambda: sg.defenses.StoG(lowest=0.0), "lowest"),
        (lambda: sg.defenses.MPPD(norm="l0"), "norm"),  # type: ignore[arg-type]
        (lambda: sg.defenses.MPDSGR(moments="none"), "moments"),  # type: ignore[arg-type]
        (lambda: sg.defenses.FEEL(radii=(), leak=False), "nothing to do"),
        (lambda: sg.defenses.DLIF(decay=2.0), "decay = 2.0 must be in"),
        (lambda: sg.defenses.InputQuantization(levels=1), "levels"),
        (lambda: sg.defenses.Conversion(share=1.0), "share"),
        (lambda: sg.defenses.EMA(decay=1.0), "decay"),
        (lambda: sg.TGO(deltas=(0.1, -1.0)), "delta"),
    ],
)
def test_nonsense_is_refused_by_name(make: Callable[[], Defense], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


# adversaries


def test_eps_warms_up(step: Step) -> None:
    adversary = sg.AT(eps=0.1, warmup=0.5, random_start=False)
    for progress, share in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)):
        step.progress = progress
        moved = (adversary.adversaries(step) - step.x).abs().max()
        assert float(moved) == pytest.approx(0.1 * share, abs=1e-6)


def test_training_adversaries_are_those_of_a_plain_loop(step: Step) -> None:
    """PGD-3 from x, written out.

    Network in eval mode, sign of the gradient of the cross-entropy, projected.
    """
    eps, size = 0.06, 0.03
    found = sg.AT(eps=eps, steps=3, step_size=size, random_start=False).adversaries(step)
    net, z = step.net.eval(), step.x.clone()
    for _ in range(3):
        z.requires_grad_()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(net(z), step.y, reduction="sum"), z)
        z = (z.detach() + size * g.sign()).clamp(step.x - eps, step.x + eps).clamp(0, 1)
    assert torch.equal(found, z)


def test_part_of_the_loss_can_stay_on_clean_images(step: Step) -> None:
    hooks = sg.AT(clean_share=0.3).start(step.net)
    hooks.craft(step)
    assert {name: view.weight for name, view in step.views.items()} == {"clean": 0.3, "adversarial": 0.7}
    assert torch.equal(step.views["clean"].x, step.x)
    sg.AT().start(step.net).craft(step)
    assert set(step.views) == {"adversarial"}


def test_the_estimator_is_drawn_per_batch(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    for name, inner in CRAFTING_GRADIENTS.items():
        monkeypatch.setitem(CRAFTING_GRADIENTS, name, Spy(name, inner, used))
    adversary = sg.AT(estimators=("own", "assg", "bptr"))
    for key in range(12):
        step.key = key
        adversary.adversaries(step)
    assert set(used) == {"own", "assg", "bptr"}
    used.clear()
    adversary.adversaries(step)
    adversary.adversaries(step)
    assert len(set(used)) == 1  # a function of the step


class Spy:
    def __init__(self, name: str, inner: Estimator, used: list[str]) -> None:
        self.name, self.inner, self.used = name, inner, used

    def open(self, model: Model) -> AbstractContextManager[Opened]:
        self.used.append(self.name)
        return self.inner.open(model)


def test_crafting_with_batch_statistics_leaves_no_trace(step: Step) -> None:
    before = {k: v.clone() for k, v in step.net.state_dict().items()}
    in_eval = sg.AT(batch_norm="eval").adversaries(step)
    in_train = sg.AT(batch_norm="train").adversaries(step)
    assert not torch.equal(in_eval, in_train)
    assert all(torch.equal(v, before[k]) for k, v in step.net.state_dict().items())
    assert step.net.training
    assert all(m.training for m in step.net.modules())


def test_noise_while_crafting_is_off_fresh_or_frozen(step: Step) -> None:
    sg.TGO(lambda_max=0.0, sigma=0.5).prepare(step.net)
    quiet = sg.AT(steps=3, noise="off").adversaries(step)
    assert torch.equal(quiet, sg.AT(steps=3, noise="off").adversaries(step))

    def seen(noise: Literal["frozen", "fresh"]) -> list[Tensor]:
        draws: list[Tensor] = []
        with sg.tap(step.net, potentials=True):
            handle = step.net.head.register_forward_hook(lambda m, i, o: draws.append(o.detach().clone()))
            seed_noise(step.net, 1)
            sg.AT(eps=1e-9, steps=3, noise=noise, random_start=False).adversaries(
                step
            )  # the images hardly move, only noise does
            handle.remove()
        return draws

    frozen, fresh = seen("frozen"), seen("fresh")
    assert torch.equal(frozen[0], frozen[1])
    assert not torch.equal(fresh[0], fresh[1])


def test_trades_is_the_divergence_of_its_formula(step: Step) -> None:
    hooks = sg.TRADES(beta=5.0, temperature=2.0).start(step.net)
    step.logits = {"clean": logits(1, 8, 10), "adversarial": logits(2, 8, 10)}
    pairs = zip(step.logits["clean"].tolist(), step.logits["adversarial"].tolist(), strict=True)
    each = [kl(softmax([v / 2 for v in a]), softmax([v / 2 for v in b])) for a, b in pairs]
    assert float(present(hooks.penalty(step)).detach()) == pytest.approx(5.0 * 4.0 * sum(each) / 8, rel=1e-5)
    hooks.craft(step)
    assert step.views["clean"].weight == 1
    assert step.views["adversarial"].weight == 0
    assert 0 < float((step.views["adversarial"].x - step.x).abs().max()) <= 8 / 255 + 1e-6


def test_mart_is_its_formula(step: Step) -> None:
    hooks = sg.defenses.MART(beta=4.0).start(step.net)
    step.logits = {"clean": logits(3, 8, 10), "adversarial": logits(4, 8, 10)}
    total = 0.0
    for a, b, y in zip(
        step.logits["clean"].tolist(), step.logits["adversarial"].tolist(), step.y.tolist(), strict=True
    ):
        p, q = softmax(a), softmax(b)
        wrong = max(v for k, v in enumerate(q) if k != y)
        total += -math.log(q[y]) - math.log(1 - wrong) + 4.0 * kl(p, q) * (1 - p[y])
    assert float(present(hooks.penalty(step)).detach()) == pytest.approx(total / 8, rel=1e-4)


def test_temporal_ensemble_is_its_formula_and_wants_every_step(step: Step) -> None:
    hooks = sg.defenses.TemporalEnsemble(consistency=0.3).start(step.net)
    step.logits = {"adversarial": logits(5, 3, 8, 10)}
    mean = step.logits["adversarial"].mean(0).tolist()
    each = [
        kl(softmax(mean[n]), softmax(z))
        for row in step.logits["adversarial"].tolist()
        for n, z in enumerate(row)
    ]
    assert float(present(hooks.penalty(step)).detach()) == pytest.approx(0.3 * sum(each) / 24, rel=1e-5)
    step.logits = {"adversarial": logits(5, 8, 10)}
    with pytest.raises(UserError, match="per_step"):
        hooks.penalty(step)


# parameters


def test_rat_moves_singular_values_by_its_polynomial(step: Step) -> None:
    conv = conv_of(stages_of(step.net)[1])
    before = torch.linalg.svdvals(conv.weight.detach().flatten(1))
    sg.RAT(beta=0.1).start(step.net).after(step)
    after = torch.linalg.svdvals(conv.weight.detach().flatten(1))
    expected = sorted((1.1 * s - 0.1 * s**3 for s in before.tolist()), reverse=True)
    assert sorted((abs(v) for v in after.tolist()), reverse=True) == pytest.approx(
        [abs(v) for v in expected], rel=1e-4
    )


def test_rat_takes_thirty_percent_of_the_rows_of_a_large_linear_layer_and_projects_combinations() -> None:
    net = sg.build("wrn16", classes=300, in_shape=(1, 8, 8), timesteps=1, widen=1)
    join = as_a(Block, as_a(WRN, net.body).blocks[0]).join
    with torch.no_grad():
        join.weight.copy_(torch.tensor([0.9, 0.5]))
    before = net.head.weight.detach().clone()
    sg.RAT().start(net).after(Step(net, torch.rand(2, 1, 8, 8), torch.tensor([0, 1])))
    assert int((net.head.weight != before).any(1).sum()) == 90
    assert join.weight.tolist() == pytest.approx([0.7, 0.3])


@pytest.mark.parametrize("v", [[0.9, 0.5], [2.0, -1.0], [0.2, 0.3, 0.1], [-1.0, -2.0, -3.0]])
def test_onto_simplex_is_the_nearest_point(v: list[float]) -> None:
    from scipy.optimize import minimize

    start = [1 / len(v)] * len(v)

    def distance(p: Sequence[float]) -> float:
        return sum((a - b) ** 2 for a, b in zip(p, v, strict=True))

    best = minimize(
        distance, start, bounds=[(0, 1)] * len(v), constraints={"type": "eq", "fun": lambda p: sum(p) - 1}
    ).x
    assert parameters.onto_simplex(torch.tensor(v)).tolist() == pytest.approx(list(best), abs=1e-3)


def test_deflation_takes_the_first_singular_component_away(step: Step) -> None:
    g = logits(6, 12, 20).double()
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    assert torch.allclose(parameters.deflated(g, 500), g - s[0] * torch.outer(u[:, 0], v[0]), atol=1e-6)
    for p in step.net.parameters():
        p.grad = torch.randn_like(p)
    tops = {
        n: float(torch.linalg.svdvals(present(p.grad).flatten(1))[0])
        for n, p in step.net.named_parameters()
        if p.dim() >= 2
    }
    sg.defenses.DSD().start(step.net).gradients(step.net)
    assert all(
        float(torch.linalg.svdvals(present(p.grad).flatten(1))[0]) < 0.99 * tops[n]
        for n, p in step.net.named_parameters()
        if p.dim() >= 2
    )


def test_ema_is_the_running_mean_and_batch_norm_follows(step: Step) -> None:
    net = step.net
    hooks = sg.defenses.EMA(decay=0.5).start(net)
    mean = net.head.bias.detach().clone()
    for k in range(20):
        with torch.no_grad():
            net.head.bias.add_(1.0)
        hooks.after(step)
        kept = min(0.5, (k + 1) / (11 + k))
        mean = kept * mean + (1 - kept) * net.head.bias.detach()
    images = [torch.rand(16, 1, 8, 8) for _ in range(3)]
    hooks.finish(net, iter(images))
    assert torch.allclose(net.head.bias, mean, atol=1e-5)
    stage = stages_of(net)[0]
    with torch.no_grad():
        outs = [stage.conv(((x - net.mean) / net.std)[None])[0].mean((0, 2, 3)) for x in images]
    assert torch.allclose(present(stage.norm.running_mean), torch.stack(outs).mean(0), atol=1e-4)
    assert stage.norm.momentum == 0.1


def averaged(hooks: Hooks) -> dict[str, Tensor]:
    """The running means of the weights, once there are some."""
    return as_a(dict, vars(hooks)["mean"])


def test_ema_begins_with_the_weights_of_its_first_step(step: Step) -> None:
    net = step.net
    hooks = sg.defenses.EMA(decay=0.5, average_from=0.75).start(net)  # the step is half-way
    start = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        net.head.bias.add_(1.0)
    hooks.after(step)
    hooks.finish(net, iter([]))  # nothing was averaged: nothing changes
    assert torch.equal(net.head.bias, start["head.bias"] + 1)
    step.progress = 0.75
    hooks.after(step)
    assert torch.equal(averaged(hooks)["head.bias"], net.head.bias)
    with torch.no_grad():
        net.head.bias.add_(1.0)
    hooks.after(step)
    kept = 2 / 12
    expected = kept * (start["head.bias"] + 1) + (1 - kept) * (start["head.bias"] + 2)
    assert torch.allclose(averaged(hooks)["head.bias"], expected)


# SR


def test_sr_is_the_squared_slope_along_the_sign_of_the_gradient(step: Step) -> None:
    hooks = sg.defenses.SR(weight=0.7, h=0.02).start(step.net)
    hooks.complete(step)
    moved = (step.views["shifted"].x - step.x).abs()
    assert bool(((moved - 0.02).abs() < 1e-6).logical_or(moved == 0).all())
    net, x = step.net, step.x.clone().requires_grad_()  # batch norm in training mode, as in the loss
    z = net(x)
    other = z.detach().scatter(1, step.y[:, None], -math.inf).argmax(1)
    (g,) = torch.autograd.grad(
        torch.sigmoid(z.gather(1, step.y[:, None]) - z.gather(1, other[:, None])).sum(), x
    )
    assert torch.equal((step.views["shifted"].x - step.x).sign(), g.sign()), (
        "up the slope, not down, not anywhere"
    )
    step.logits = {"clean": logits(7, 8, 10), "shifted": logits(8, 8, 10)}
    total = 0.0
    for a, b, y in zip(
        step.logits["clean"].tolist(), step.logits["shifted"].tolist(), step.y.tolist(), strict=True
    ):
        k = max((v, i) for i, v in enumerate(a) if i != y)[1]
        before, after = (math.exp(z[y]) / (math.exp(z[y]) + math.exp(z[k])) for z in (a, b))
        total += ((after - before) / 0.02) ** 2
    assert float(present(hooks.penalty(step)).detach()) == pytest.approx(0.7 * total / 8, rel=1e-4)


def test_sr_compares_both_passes_under_the_same_noise(tiny: Classifier) -> None:
    sg.TGO(lambda_max=0.0, sigma=0.3).prepare(tiny.train())
    seed_noise(tiny, 4)
    step = Step(tiny, torch.rand(8, 1, 8, 8), torch.arange(8))
    hooks = sg.defenses.SR().start(tiny)
    hooks.complete(step)
    out = []
    for view in ("clean", "shifted"):
        with hooks.watch(tiny, view):
            out.append(tiny(step.x))
    assert torch.equal(*out)


def test_helpers_of_sr() -> None:
    z, y = torch.tensor([[2.0, 1.0, 3.0], [0.0, 5.0, 4.0]]), torch.tensor([2, 1])
    assert best_wrong(z, y).tolist() == [0, 2]
    assert chance(z, y, best_wrong(z, y)).tolist() == pytest.approx([1 / (1 + math.exp(-1))] * 2)


def test_weight_decay_leaves_the_parameters_of_neurons_alone(little_data: Dataset) -> None:
    from spikeguard.training.trainer import Trainer

    trainer = Trainer(little_recipe(defenses=(sg.defenses.FEEL(radii=()),)), little_data, torch.device("cpu"))
    decayed = {id(p) for p in trainer.optimizer.param_groups[0]["params"]}
    names = {name for name, p in trainer.net.named_parameters() if id(p) in decayed}
    assert names == {n for n, p in trainer.net.named_parameters() if p.dim() > 1 and "dynamics" not in n}
