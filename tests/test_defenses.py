"""Every defence against a closed form or a plain loop that shares no code with it."""

import math
from statistics import NormalDist

import pytest
import torch
from conftest import awake, little_recipe
from torch import nn

import spikeguard as sg
from spikeguard.auditing.suite import FULL
from spikeguard.defenses import CRAFTERS, DEFENSES, Step, View, disturbance, membrane, parameters
from spikeguard.defenses.conversion import Analog, stairs
from spikeguard.defenses.gradient import best_wrong, chance
from spikeguard.dynamics import Dynamics, Homeostasis, Input
from spikeguard.errors import UserError
from spikeguard.networks import build
from spikeguard.neurons import Neuron, Noise, seed_noise, spiking
from spikeguard.training.recipe import Recipe


def softmax(z):
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return [v / sum(e) for v in e]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.fixture
def step(tiny):
    generator = torch.Generator().manual_seed(5)
    return Step(tiny.train(), torch.rand(8, 1, 8, 8, generator=generator), torch.arange(8) % 10, key=3, progress=0.5)


def logits(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# the interface


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defence_has_a_name_in_recipes_an_adaptive_attack_and_a_docstring(name):
    kind = DEFENSES[name]
    assert kind.adaptive in {m.name for m in FULL}
    assert kind.__doc__
    recipe = Recipe(defenses=(kind(),))
    assert Recipe.of(recipe.values()) == recipe
    assert getattr(sg, kind.__name__) is kind


def test_compose_refuses_what_cannot_go_together():
    assert sg.compose(sg.TGO(), sg.AT(), sg.RAT()) == (sg.TGO(), sg.AT(), sg.RAT())
    with pytest.raises(UserError, match="AT is named more than once"):
        sg.compose(sg.AT(), sg.AT(eps=0.1))
    with pytest.raises(UserError, match="AT and TRADES both set the training inputs"):
        sg.compose(sg.AT(), sg.TRADES())
    with pytest.raises(UserError, match="EMA and EarlyStopping both set the weights that are kept"):
        sg.compose(sg.EMA(), sg.EarlyStopping())
    with pytest.raises(UserError, match="DLIF and RandHet both set the neurons' gain"):
        sg.compose(sg.DLIF(), sg.RandHet())
    with pytest.raises(UserError, match="no defence"):
        sg.compose(sg.AT)
    sg.compose(sg.InputNoise(), sg.InputQuantisation(), sg.StoG(), sg.FEEL(), sg.RAT())  # one after the other


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sg.AT(eps=2.0), "eps"),
        (lambda: sg.AT(steps=0), "steps"),
        (lambda: sg.AT(estimators=("foo",)), "estimators"),
        (lambda: sg.AT(noise="loud"), "noise"),
        (lambda: sg.TRADES(beta=0.0), "beta"),
        (lambda: sg.RAT(beta=1.0), "beta"),
        (lambda: sg.SR(h=0.0), "h ="),
        (lambda: sg.StoG(lowest=0.0), "lowest"),
        (lambda: sg.MPPD(norm="l0"), "norm"),
        (lambda: sg.MPDSGR(moments="none"), "moments"),
        (lambda: sg.FEEL(radii=(), leak=False), "nothing to do"),
        (lambda: sg.DLIF(decay=2.0), "decay = 2.0 must be in"),
        (lambda: sg.InputQuantisation(levels=1), "levels"),
        (lambda: sg.Conversion(share=1.0), "share"),
        (lambda: sg.EMA(decay=1.0), "decay"),
        (lambda: sg.TGO(deltas=(0.1, -1.0)), "delta"),
    ],
)
def test_nonsense_is_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()


# adversaries


def test_eps_warms_up(step):
    adversary = sg.AT(eps=0.1, warmup=0.5, random_start=False)
    for progress, share in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)):
        step.progress = progress
        moved = (adversary.adversaries(step) - step.x).abs().max()
        assert float(moved) == pytest.approx(0.1 * share, abs=1e-6)


def test_training_adversaries_are_those_of_a_plain_loop(step):
    """PGD-3 from x, written out: network in eval mode, sign of the gradient of the cross-entropy, projected."""
    eps, size = 0.06, 0.03
    found = sg.AT(eps=eps, steps=3, step_size=size, random_start=False).adversaries(step)
    net, z = step.net.eval(), step.x.clone()
    for _ in range(3):
        z.requires_grad_()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(net(z), step.y, reduction="sum"), z)
        z = (z.detach() + size * g.sign()).clamp(step.x - eps, step.x + eps).clamp(0, 1)
    assert torch.equal(found, z)


def test_part_of_the_loss_can_stay_on_clean_images(step):
    hooks = sg.AT(clean_share=0.3).start(step.net)
    hooks.craft(step)
    assert {name: view.weight for name, view in step.views.items()} == {"clean": 0.3, "adversarial": 0.7}
    assert torch.equal(step.views["clean"].x, step.x)
    sg.AT().start(step.net).craft(step)
    assert set(step.views) == {"adversarial"}


def test_the_estimator_is_drawn_per_batch(step, monkeypatch):
    used = []
    for name, inner in CRAFTERS.items():
        monkeypatch.setitem(CRAFTERS, name, Spy(name, inner, used))
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
    def __init__(self, name, inner, used):
        self.name, self.inner, self.used = name, inner, used

    def open(self, model):
        self.used.append(self.name)
        return self.inner.open(model)


def test_crafting_with_batch_statistics_leaves_no_trace(step):
    before = {k: v.clone() for k, v in step.net.state_dict().items()}
    in_eval = sg.AT(batch_norm="eval").adversaries(step)
    in_train = sg.AT(batch_norm="train").adversaries(step)
    assert not torch.equal(in_eval, in_train)
    assert all(torch.equal(v, before[k]) for k, v in step.net.state_dict().items())
    assert step.net.training
    assert all(m.training for m in step.net.modules())


def test_noise_while_crafting_is_off_fresh_or_frozen(step):
    sg.TGO(lambda_max=0.0, sigma=0.5).prepare(step.net)
    quiet = sg.AT(steps=3, noise="off").adversaries(step)
    assert torch.equal(quiet, sg.AT(steps=3, noise="off").adversaries(step))

    def seen(noise):
        draws = []
        with sg.tap(step.net, potentials=True):
            handle = step.net.head.register_forward_hook(lambda m, i, o: draws.append(o.detach().clone()))
            seed_noise(step.net, 1)
            sg.AT(eps=1e-9, steps=3, noise=noise, random_start=False).adversaries(step)  # the images hardly move, only noise does
            handle.remove()
        return draws

    frozen, fresh = seen("frozen"), seen("fresh")
    assert torch.equal(frozen[0], frozen[1])
    assert not torch.equal(fresh[0], fresh[1])


def test_trades_is_the_divergence_of_its_formula(step):
    hooks = sg.TRADES(beta=5.0, temperature=2.0).start(step.net)
    step.logits = {"clean": logits(1, 8, 10), "adversarial": logits(2, 8, 10)}
    pairs = zip(step.logits["clean"].tolist(), step.logits["adversarial"].tolist(), strict=True)
    each = [kl(softmax([v / 2 for v in a]), softmax([v / 2 for v in b])) for a, b in pairs]
    assert float(hooks.penalty(step).detach()) == pytest.approx(5.0 * 4.0 * sum(each) / 8, rel=1e-5)
    hooks.craft(step)
    assert step.views["clean"].weight == 1
    assert step.views["adversarial"].weight == 0
    assert 0 < float((step.views["adversarial"].x - step.x).abs().max()) <= 8 / 255 + 1e-6


def test_mart_is_its_formula(step):
    hooks = sg.MART(beta=4.0).start(step.net)
    step.logits = {"clean": logits(3, 8, 10), "adversarial": logits(4, 8, 10)}
    total = 0.0
    for a, b, y in zip(step.logits["clean"].tolist(), step.logits["adversarial"].tolist(), step.y.tolist(), strict=True):
        p, q = softmax(a), softmax(b)
        wrong = max(v for k, v in enumerate(q) if k != y)
        total += -math.log(q[y]) - math.log(1 - wrong) + 4.0 * kl(p, q) * (1 - p[y])
    assert float(hooks.penalty(step).detach()) == pytest.approx(total / 8, rel=1e-4)


def test_temporal_ensemble_is_its_formula_and_wants_every_step(step):
    hooks = sg.TemporalEnsemble(consistency=0.3).start(step.net)
    step.logits = {"adversarial": logits(5, 3, 8, 10)}
    mean = step.logits["adversarial"].mean(0).tolist()
    each = [kl(softmax(mean[n]), softmax(z)) for row in step.logits["adversarial"].tolist() for n, z in enumerate(row)]
    assert float(hooks.penalty(step).detach()) == pytest.approx(0.3 * sum(each) / 24, rel=1e-5)
    step.logits = {"adversarial": logits(5, 8, 10)}
    with pytest.raises(UserError, match="per_step"):
        hooks.penalty(step)


# parameters


def test_rat_moves_singular_values_by_its_polynomial(step):
    conv = step.net.body.stages[1].conv[0]
    before = torch.linalg.svdvals(conv.weight.detach().flatten(1))
    sg.RAT(beta=0.1).start(step.net).after(step)
    after = torch.linalg.svdvals(conv.weight.detach().flatten(1))
    expected = sorted((1.1 * s - 0.1 * s**3 for s in before.tolist()), reverse=True)
    assert sorted((abs(v) for v in after.tolist()), reverse=True) == pytest.approx([abs(v) for v in expected], rel=1e-4)


def test_rat_takes_thirty_percent_of_the_rows_of_a_large_linear_layer_and_projects_combinations():
    net = sg.build("wrn16", classes=300, in_shape=(1, 8, 8), timesteps=1, widen=1)
    with torch.no_grad():
        net.body.blocks[0].join.weight.copy_(torch.tensor([0.9, 0.5]))
    before = net.head.weight.detach().clone()
    sg.RAT().start(net).after(Step(net, torch.rand(2, 1, 8, 8), torch.tensor([0, 1])))
    assert int((net.head.weight != before).any(1).sum()) == 90
    assert net.body.blocks[0].join.weight.tolist() == pytest.approx([0.7, 0.3])


@pytest.mark.parametrize("v", [[0.9, 0.5], [2.0, -1.0], [0.2, 0.3, 0.1], [-1.0, -2.0, -3.0]])
def test_onto_simplex_is_the_nearest_point(v):
    from scipy.optimize import minimize

    start = [1 / len(v)] * len(v)
    distance = lambda p: sum((a - b) ** 2 for a, b in zip(p, v, strict=True))  # noqa: E731
    best = minimize(distance, start, bounds=[(0, 1)] * len(v), constraints={"type": "eq", "fun": lambda p: sum(p) - 1}).x
    assert parameters.onto_simplex(torch.tensor(v)).tolist() == pytest.approx(list(best), abs=1e-3)


def test_deflation_takes_the_first_singular_component_away(step):
    g = logits(6, 12, 20).double()
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    assert torch.allclose(parameters.deflated(g, 500), g - s[0] * torch.outer(u[:, 0], v[0]), atol=1e-6)
    for p in step.net.parameters():
        p.grad = torch.randn_like(p)
    tops = {n: float(torch.linalg.svdvals(p.grad.flatten(1))[0]) for n, p in step.net.named_parameters() if p.dim() >= 2}
    sg.DSD().start(step.net).gradients(step.net)
    assert all(float(torch.linalg.svdvals(p.grad.flatten(1))[0]) < 0.99 * tops[n] for n, p in step.net.named_parameters() if p.dim() >= 2)


def test_ema_is_the_running_mean_and_batch_norm_follows(step):
    net = step.net
    hooks = sg.EMA(decay=0.5).start(net)
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
    stage = net.body.stages[0]
    with torch.no_grad():
        outs = [stage.conv(((x - net.mean) / net.std)[None])[0].mean((0, 2, 3)) for x in images]
    assert torch.allclose(stage.norm.running_mean, torch.stack(outs).mean(0), atol=1e-4)
    assert stage.norm.momentum == 0.1


# SR


def test_sr_is_the_squared_slope_along_the_sign_of_the_gradient(step):
    hooks = sg.SR(weight=0.7, h=0.02).start(step.net)
    hooks.complete(step)
    moved = (step.views["shifted"].x - step.x).abs()
    assert bool(((moved - 0.02).abs() < 1e-6).logical_or(moved == 0).all())
    net, x = step.net, step.x.clone().requires_grad_()  # batch norm in training mode, as in the loss
    z = net(x)
    other = z.detach().scatter(1, step.y[:, None], -math.inf).argmax(1)
    (g,) = torch.autograd.grad(torch.sigmoid(z.gather(1, step.y[:, None]) - z.gather(1, other[:, None])).sum(), x)
    assert torch.equal((step.views["shifted"].x - step.x).sign(), g.sign()), "up the slope, not down, not anywhere"
    step.logits = {"clean": logits(7, 8, 10), "shifted": logits(8, 8, 10)}
    total = 0.0
    for a, b, y in zip(step.logits["clean"].tolist(), step.logits["shifted"].tolist(), step.y.tolist(), strict=True):
        k = max((v, i) for i, v in enumerate(a) if i != y)[1]
        f = lambda z, y=y, k=k: math.exp(z[y]) / (math.exp(z[y]) + math.exp(z[k]))  # noqa: E731
        total += ((f(b) - f(a)) / 0.02) ** 2
    assert float(hooks.penalty(step).detach()) == pytest.approx(0.7 * total / 8, rel=1e-4)


def test_sr_compares_both_passes_under_the_same_noise(tiny):
    sg.TGO(lambda_max=0.0, sigma=0.3).prepare(tiny.train())
    seed_noise(tiny, 4)
    step = Step(tiny, torch.rand(8, 1, 8, 8), torch.arange(8))
    hooks = sg.SR().start(tiny)
    hooks.complete(step)
    out = []
    for view in ("clean", "shifted"):
        with hooks.watch(tiny, view):
            out.append(tiny(step.x))
    assert torch.equal(*out)


# neurons with dynamics


def loop(current, decay=0.5, gain=None, theta0=1.0, moving=None, noise=None):
    """Hard reset, one neuron after the other: spikes and u as nested lists ``[T][M]``."""
    spikes, us = [], []
    steps, count = len(current), len(current[0])
    v, theta = [0.0] * count, [theta0] * count
    for t in range(steps):
        row, urow = [], []
        for m in range(count):
            d = decay[t][m] if isinstance(decay, list) else decay
            h = d * v[m] + (gain[t][m] if gain else 1.0) * current[t][m]
            if moving:
                theta[m] += moving[0][m] * (h - moving[1][t][m])
            u = h - theta[m]
            s = float(u + (noise(t, m, u) if noise else 0.0) >= 0)
            v[m] = h * (1 - s)
            row.append(s)
            urow.append(u)
        spikes.append(row)
        us.append(urow)
    return torch.tensor(spikes), torch.tensor(us)


def fired(layer, current):
    """Spikes and u of a layer for currents ``[T, M]``."""
    with sg.tap(layer, potentials=True) as t:
        spikes = layer(current[:, None])
    return spikes[:, 0], t.potentials[""][:, 0]


@pytest.fixture
def current():
    return 1.5 * torch.rand(4, 7, generator=torch.Generator().manual_seed(9))


def with_dynamics(dynamics):
    layer = sg.LIF(decay=0.5)
    layer.dynamics.append(dynamics)
    return layer


def test_dlif_scales_the_current_of_every_step(current):
    from spikeguard.defenses.neural import _Gains

    gains = _Gains(4)
    with torch.no_grad():
        gains.gain.copy_(torch.tensor([0.5, 1.0, 1.5, 2.0]))
    got = fired(with_dynamics(gains), current)
    expected = loop(current.tolist(), gain=[[g] * 7 for g in (0.5, 1.0, 1.5, 2.0)])
    assert torch.equal(got[0], expected[0])
    assert torch.allclose(got[1], expected[1], atol=1e-6)


def test_feel_has_a_leak_for_every_neuron_and_step_and_trains_it(current):
    from spikeguard.defenses.inputs import _Leaks

    leaks = _Leaks(4, torch.Size([7]), 1.0)
    with torch.no_grad():
        leaks.leak.uniform_(0, 1, generator=torch.Generator().manual_seed(1))
    layer = with_dynamics(leaks)
    got = fired(layer, current)
    expected = loop(current.tolist(), decay=leaks.leak.tolist())
    assert torch.equal(got[0], expected[0])
    assert torch.allclose(got[1], expected[1], atol=1e-6)
    # gradients of the kernel against the readable loop in plain autograd
    from spikeguard.kernels import reference
    from spikeguard.kernels.mode import Mode

    weight = torch.rand(4, 1, 7, generator=torch.Generator().manual_seed(2))
    x = current[:, None].double().requires_grad_()
    plain_leak = leaks.leak.detach().double()[:, None].requires_grad_()
    plain = reference.integrate(x, plain_leak, layer.threshold, Mode(4, layer.spec.surrogate)).spikes
    expected_gradients = torch.autograd.grad((plain * weight.double()).sum(), (x, plain_leak))
    y = current[:, None].clone().requires_grad_()
    got_gradients = torch.autograd.grad((layer(y) * weight).sum(), (y, leaks.leak))
    assert torch.allclose(got_gradients[0].double(), expected_gradients[0], atol=1e-5)
    assert torch.allclose(got_gradients[1].double(), expected_gradients[1][:, 0], atol=1e-5)


def test_homeostasis_moves_thresholds_by_its_formula(current):
    goal = torch.rand(4, 7, generator=torch.Generator().manual_seed(3))
    rate = torch.full((7,), 0.3)

    class Moving(Dynamics):
        def homeostasis(self):
            return Homeostasis(rate, goal)

    got = fired(with_dynamics(Moving()), current)
    expected = loop(current.tolist(), moving=(rate.tolist(), goal.tolist()))
    assert torch.equal(got[0], expected[0])
    assert torch.allclose(got[1], expected[1], atol=1e-6)


def test_hosnn_remembers_potentials_while_it_reads_and_holds_them_afterwards(step):
    defense = sg.HoSNN(share=0.5)
    defense.prepare(step.net)
    hooks = defense.start(step.net)
    goal = {name: torch.zeros_like(layer.dynamics[0].goal) for name, layer in spiking(step.net).items()}
    for _ in range(3):
        step.views = {"clean": View(step.x, 1.0)}
        hooks.begin(Step(step.net, step.x, step.y, progress=0.2))
        hooks.complete(step)
        with hooks.watch(step.net, "clean"), sg.tap(step.net) as seen:
            step.net(step.x)
        for name, u in seen.potentials.items():
            goal[name] = goal[name] + 0.05 * ((u.detach() + 1.0).mean(1) - goal[name])
        hooks.after(step)
    assert not hooks.settled
    for name, layer in spiking(step.net).items():
        torch.testing.assert_close(layer.dynamics[0].goal, goal[name])
        assert layer.dynamics.homeostasis() is None
    hooks.begin(Step(step.net, step.x, step.y, progress=0.7))
    assert hooks.settled
    assert all(layer.dynamics.homeostasis() is not None for layer in spiking(step.net).values())


def test_adaptive_surrogates_and_other_backward_passes_reach_neurons_with_dynamics(tiny):
    for defense in (sg.HoSNN(), sg.FEEL(radii=()), sg.DLIF(), sg.StoG(), sg.RandHet()):
        net = awake(sg.build("small", classes=10, in_shape=(1, 8, 8), timesteps=3, width=4, seed=1, neuron=sg.Neuron(threshold=0.3)))
        defense.prepare(net)
        for layer in spiking(net).values():
            if hasattr(layer.dynamics[0], "moves"):
                layer.dynamics[0].moves.fill_(True)
        x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
        for estimator in (sg.assg(seen=True), sg.swap(sg.Atan(4.0)), sg.bptr(), sg.soft()):
            with estimator.open(net) as opened:
                gradient, _, _ = opened(x, y, lambda z, y: nn.functional.cross_entropy(z, y, reduction="none"))
            assert bool(torch.isfinite(gradient).all())
            assert float(gradient.abs().sum()) > 0, (defense, estimator)


def test_randhet_draws_decays_and_keeps_the_mean_of_the_current(current):
    from spikeguard.defenses.neural import _Heterogeneous

    for each_step in (True, False):
        layer = with_dynamics(_Heterogeneous(1.0, each_step))
        seed_noise(layer, 7)
        scaled, decay = layer.dynamics.charge(current[:, None], 4)
        seed_noise(layer, 7)
        got = fired(layer, current)
        expected = loop(current.tolist(), decay=decay[:, 0].tolist(), gain=(1 - decay[:, 0]).tolist())
        assert torch.equal(got[0], expected[0])
        assert torch.allclose(scaled[:, 0], (1 - decay[:, 0]) * current)
        assert bool((decay[0] != decay[1]).any()) == each_step
    many = _Heterogeneous(1.0, True).charge(torch.ones(4, 50, 400), 4)[1]
    logit = torch.log(many / (1 - many))
    assert float(logit.mean()) == pytest.approx(0, abs=5 / many.numel() ** 0.5)
    assert float(logit.std()) == pytest.approx(1, abs=0.02)


def test_stog_gates_spikes_by_its_probability_and_learns_by_the_relaxation():
    from spikeguard.defenses.neural import _Gates

    gates = _Gates(torch.Size([3]), 0.5)
    with torch.no_grad():
        gates.keep.copy_(torch.tensor([0.2, 0.6, 1.0]))
    spikes = torch.ones(4, 20000, 3)
    out = gates.gate(spikes)
    assert torch.equal(out[0], out[3])  # one gate for all steps
    assert set(out.detach().unique().tolist()) == {0.0, 1.0}
    assert out[0].mean(0).tolist() == pytest.approx([0.2, 0.6, 1.0], abs=5 * 0.5 / 20000**0.5)
    torch.manual_seed(3)
    drawn = gates.uniform(spikes[:1, :1])
    torch.manual_seed(3)
    (gradient,) = torch.autograd.grad(gates.gate(spikes[:, :1]).sum(), gates.keep)
    for k in range(2):
        p, r = float(gates.keep[k].detach()), float(drawn[0, 0, k])
        z = (math.log(p / (1 - p)) + math.log(r / (1 - r))) / 0.5
        soft = 1 / (1 + math.exp(-z))
        assert float(gradient[k]) == pytest.approx(4 * soft * (1 - soft) / 0.5 / (p * (1 - p)), rel=1e-4)


def test_gates_that_start_open_can_close():
    from spikeguard.defenses.neural import _Gates

    gates = _Gates(torch.Size([5000]), 0.5)
    (gradient,) = torch.autograd.grad(gates.gate(torch.ones(2, 64, 5000)).sum(), gates.keep)
    assert float(gradient.abs().sum()) > 0


def test_stog_prior_is_half_the_square_for_the_first_part_of_the_training(step):
    defense = sg.StoG(gamma=0.1, prior_share=0.6)
    defense.prepare(step.net)
    hooks = defense.start(step.net)
    keeps = [layer.dynamics[0].keep for layer in spiking(step.net).values()]
    assert float(hooks.penalty(step).detach()) == pytest.approx(0.1 * sum(k.numel() for k in keeps) / 2, rel=1e-5)
    step.progress = 0.6
    assert hooks.penalty(step) is None
    with torch.no_grad():
        keeps[0].fill_(-3.0)
    hooks.after(step)
    assert float(keeps[0].detach().min()) == pytest.approx(0.1)


def test_noise_inside_the_band_only(current):
    layer = sg.LIF(decay=0.5, noise=sg.Noise(0.4, "band", at_eval=True, reach=0.3))
    seed_noise(layer, 5)
    got = fired(layer, current)
    seed_noise(layer, 5)
    wide = sg.LIF(decay=0.5, noise=sg.Noise(0.4, "compare", at_eval=True))
    drawn = layer.normal(torch.zeros(4, 1, 7))[:, 0] * 0.4
    seed_noise(wide, 5)
    expected = loop(current.tolist(), noise=lambda t, m, u: float(drawn[t, m]) if abs(u) < 0.3 else 0.0)
    everywhere = loop(current.tolist(), noise=lambda t, m, u: float(drawn[t, m]))
    assert torch.equal(got[0], expected[0])
    assert torch.equal(fired(wide, current)[0], everywhere[0])


def test_delta_and_sigma_of_every_layer(tiny):
    guard = sg.TGO(deltas=(0.2, 0.4, 0.8), sigmas=(0.0, 0.03, 0.06), lambda_max=1.0)
    guard.prepare(tiny.train())
    assert [layer.noise.sigma for layer in spiking(tiny).values()] == [0.0, 0.03, 0.06]
    for layer in spiking(tiny).values():
        layer.noise = None
    hooks, x = guard.start(tiny), torch.rand(4, 1, 8, 8)
    hooks.complete(Step(tiny, x, torch.zeros(4).long()))
    with hooks.watch(tiny, "clean"), sg.tap(tiny, potentials=True) as t:
        tiny(x)
    expected = sum(float((d - u.abs()).clamp(min=0).mean()) for d, u in zip((0.2, 0.4, 0.8), t.potentials.values(), strict=True))
    assert float(hooks.penalty(Step(tiny, x, torch.zeros(4).long(), progress=1.0)).detach()) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(UserError, match="2 values, the network 3"):
        sg.TGO(deltas=(0.1, 0.2), sigma=0.0).start(tiny)


# inputs


def test_input_noise_is_fresh_at_every_step(tiny):
    sg.InputNoise(sigma=0.2).prepare(tiny)
    x = torch.full((64, 1, 8, 8), 0.5)
    out = tiny.before[0](x[None], 3) - 0.5
    assert out.shape == (3, 64, 1, 8, 8)
    assert float(out.mean()) == pytest.approx(0, abs=5 * 0.2 / out.numel() ** 0.5)
    assert float(out.std()) == pytest.approx(0.2, rel=0.05)
    assert abs(float((out[0] * out[1]).mean())) < 5 * 0.04 / out[0].numel() ** 0.5
    assert not torch.equal(tiny(x), tiny(x))


def test_quantised_inputs_lie_on_the_grid_keep_their_mean_and_pass_gradients(tiny):
    sg.InputQuantisation(levels=5).prepare(tiny)
    x = torch.linspace(0, 1, 64).view(1, 1, 8, 8).repeat(400, 1, 1, 1).requires_grad_()
    out = tiny.before[0](x[None], 3)
    seen = out.detach()
    assert float((seen * 4 - (seen * 4).round()).abs().max()) < 1e-5
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
    assert torch.allclose(seen.mean((0, 1)), x[0], atol=5 * 0.125 / 1200**0.5)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert bool((gradient == 3).all())


def test_feel_passes_low_frequencies_and_stops_high_ones_step_by_step():
    from spikeguard.defenses.inputs import _LowPass

    side = torch.arange(32.0)
    wave = lambda k: (0.5 + 0.3 * torch.cos(2 * math.pi * k * side / 32)).expand(1, 1, 1, 32, 32)  # noqa: E731
    encode: Input = _LowPass((0.5, 0.4375, 0.375, 0.3125))
    for k in (3, 9, 11, 13, 15):
        out = encode(wave(k), 4)
        for t, radius in enumerate((16, 14, 12, 10)):
            expected = wave(k)[0] if k <= radius else torch.full_like(wave(k)[0], 0.5)
            assert torch.allclose(out[t], expected, atol=1e-5), (k, radius)
    image = torch.rand(2, 1, 32, 32).requires_grad_()
    encode(image[None], 4).sum().backward()
    assert float(image.grad.abs().sum()) > 0


def test_changes_of_the_input_follow_one_another(tiny):
    sg.InputNoise(sigma=0.3).prepare(tiny)
    sg.FEEL(radii=(0.5, 0.4, 0.3), leak=False).prepare(tiny)
    x = torch.rand(2, 1, 8, 8)[None]
    noisy = tiny.before[0](x, 3)
    out = tiny.before[1](noisy, 3)
    assert out.shape == noisy.shape
    for t in range(3):  # each step's own noise passes
        alone = tiny.before[1](noisy[t : t + 1], 3)[t]
        assert torch.allclose(out[t], alone, atol=1e-6)


def test_two_defences_inside_the_same_neurons_both_act(current):
    from spikeguard.defenses.inputs import _Leaks
    from spikeguard.defenses.neural import _Gains, _Gates

    layer = sg.LIF(decay=0.5)
    leaks, gains = _Leaks(4, torch.Size([7]), 0.8), _Gains(4)
    with torch.no_grad():
        gains.gain.copy_(torch.tensor([0.5, 1.0, 1.5, 2.0]))
    layer.dynamics.extend([leaks, gains])
    expected = loop(current.tolist(), decay=0.8, gain=[[g] * 7 for g in (0.5, 1.0, 1.5, 2.0)])
    assert torch.equal(fired(layer, current)[0].detach(), expected[0])
    layer.dynamics.append(_Gates(torch.Size([7]), 0.5))
    with torch.no_grad():
        layer.dynamics[2].keep.fill_(0.0)
    assert not fired(layer, current)[0].detach().any()


def test_sources_of_randomness_come_back_after_crafting_and_scoring(tiny):
    from spikeguard.auditing.scoring import drawn

    sg.RandHet().prepare(tiny)
    sg.InputNoise().prepare(tiny)
    seed_noise(tiny, 5)
    x = torch.rand(2, 1, 8, 8)
    tiny(x)
    before = [(m.source, m.source.calls) for m in (*(la.dynamics[0] for la in spiking(tiny).values()), tiny.before[0])]
    with drawn(tiny, 9):
        tiny(x)
    sg.AT(noise="frozen").adversaries(Step(tiny, x, torch.tensor([0, 1])))
    after = [(m.source, m.source.calls) for m in (*(la.dynamics[0] for la in spiking(tiny).values()), tiny.before[0])]
    assert before == after


def test_a_pass_that_is_only_looked_at_leaves_batch_norm_alone(step):
    hooks = sg.ShiftGuard().start(step.net)
    hooks.complete(step)
    assert step.views["clean"].quiet is False
    assert step.views["ShiftGuard"].quiet
    from spikeguard.neurons import quiet

    buffers = [b for m in step.net.modules() if isinstance(m, nn.BatchNorm2d) for b in m.buffers()]
    before = [b.clone() for b in buffers]
    with quiet(step.net):
        step.net(step.x)
    assert all(torch.equal(a, b) for a, b in zip(before, buffers, strict=True))
    step.net(step.x)
    assert not any(torch.equal(a, b) for a, b in zip(before, buffers, strict=True))


def test_guards_of_the_first_layer_refuse_neurons_they_do_not_know(tiny):
    sg.DLIF().prepare(tiny)
    with pytest.raises(UserError, match="no other change"):
        sg.FirstLayerGuard().start(tiny)
    with pytest.raises(UserError, match="take 'empirical'"):
        sg.MPDSGR(moments="batch norm").start(tiny)


def test_feel_wants_a_radius_for_every_step(tiny):
    with pytest.raises(UserError, match="4 values, must have one for each of 3 steps"):
        sg.FEEL(leak=False).prepare(tiny)


# potentials


def test_mass_is_that_of_the_normal_law_and_moments_are_per_step_and_channel():
    for mean, deviation, gamma in ((0.3, 0.5, 1.0), (-1.0, 0.2, 0.4), (0.0, 2.0, 0.5)):
        law = NormalDist(mean, deviation)
        expected = law.cdf(gamma) - law.cdf(-gamma)
        assert float(membrane.mass(torch.tensor(mean).double(), torch.tensor(deviation).double(), gamma)) == pytest.approx(expected, rel=1e-6)
    u = logits(11, 2, 3, 4, 5, 5)
    mean, deviation = membrane.moments(u)
    for t in range(2):
        for c in range(4):
            values = u[t, :, c].flatten().tolist()
            m = sum(values) / len(values)
            assert float(mean[t, c]) == pytest.approx(m, abs=1e-5)
            assert float(deviation[t, c]) == pytest.approx((sum((v - m) ** 2 for v in values) / len(values)) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("kind", ["empirical", "batch norm"])
def test_mpd_sgr_is_the_mean_mass(tiny, kind):
    with torch.no_grad():  # gains and biases that differ: at gains of 1 a square could not be told from a gain
        for m in tiny.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.copy_(torch.linspace(0.4, 1.7, len(m.weight)))
                m.bias.copy_(torch.linspace(-0.5, 0.8, len(m.bias)))
    hooks = sg.MPDSGR(eta=2.0, gamma=0.5, moments=kind).start(tiny)
    x = torch.rand(6, 1, 8, 8)
    step = Step(tiny, x, torch.zeros(6).long(), progress=1.0)
    hooks.complete(step)
    with hooks.watch(tiny, "clean"), sg.tap(tiny, potentials=True) as t:
        tiny(x)
    got = hooks.penalty(step)
    # the mean over layers of the means over channels and steps, not over all channels
    per_layer = []
    for (name, layer), u in zip(spiking(tiny).items(), t.potentials.values(), strict=True):
        norm = tiny.get_submodule(name.replace("fire", "norm"))
        total = 0.0
        for s in range(u.shape[0]):
            for c in range(u.shape[2]):
                values = u[s, :, c].flatten()
                sigma = float(values.var(unbiased=False) + 1e-8) ** 0.5
                if kind == "batch norm":
                    sigma = abs(float(norm.weight[c].detach())) * math.sqrt(sum(float(layer.decay) ** (2 * k) for k in range(s + 1))) + 1e-4
                law = NormalDist(float(values.mean()), sigma)
                total += law.cdf(0.5) - law.cdf(-0.5)
        per_layer.append(total / (u.shape[0] * u.shape[2]))
    assert float(got.detach()) == pytest.approx(2.0 * sum(per_layer) / 3, rel=1e-3)
    norms = [m for m in tiny.modules() if isinstance(m, nn.BatchNorm2d)]
    gradients = torch.autograd.grad(got, [p for m in norms for p in (m.weight, m.bias)], allow_unused=True)
    assert all(g is not None and float(g.abs().sum()) > 0 for g in gradients)
    if kind == "empirical":
        return
    # by parts: d mass / d bias = sum of decay^k <= t times the densities' difference, d mass / d gain through the deviation alone
    for norm, layer, u, (by_gain, by_bias) in zip(norms, spiking(tiny).values(), t.potentials.values(), batched(gradients), strict=True):
        for c in range(u.shape[2]):
            gain, bias = 0.0, 0.0
            for s in range(u.shape[0]):
                sums = sum(float(layer.decay) ** k for k in range(s + 1))
                root = math.sqrt(sum(float(layer.decay) ** (2 * k) for k in range(s + 1)))
                mean, sigma = float(u[s, :, c].mean()), float(norm.weight[c].detach()) * root + 1e-4
                low, high = (mean - 0.5) / sigma, (mean + 0.5) / sigma
                density = NormalDist().pdf
                bias += sums * (density(high) - density(low)) / sigma
                gain += root * (low * density(low) - high * density(high)) / sigma
            share = 2.0 / 3 / (u.shape[0] * u.shape[2])
            assert float(by_bias[c]) == pytest.approx(share * bias, rel=2e-2, abs=1e-5)
            assert float(by_gain[c]) == pytest.approx(share * gain, rel=2e-2, abs=1e-5)


def batched(values):
    return list(zip(values[::2], values[1::2], strict=True))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_mppd_is_the_mean_difference_without_reset(step, norm):
    hooks = sg.MPPD(rho=0.7, norm=norm).start(step.net)
    step.net.eval()
    step.views["adversarial"] = View((step.x + 0.05).clamp(0, 1), 0.0)
    hooks.complete(step)
    currents = {}
    for name, view in step.views.items():
        with hooks.watch(step.net, name), sg.tap(step.net, currents=True) as t:
            step.logits[name] = step.net(view.x)
        currents[name] = t.currents["body.stages.2.fire"]
    clean, found = currents["clean"].double(), currents["adversarial"].double()
    e, total = torch.zeros_like(clean[0]), 0.0
    for t in range(3):
        e = 0.5 * e + clean[min(t, len(clean) - 1)] - found[min(t, len(found) - 1)]
        total += float((e.abs() if norm == "l1" else e.square()).sum())
    assert float(hooks.penalty(step).detach()) == pytest.approx(0.7 * total / (3 * e.numel()), rel=1e-4)


@pytest.mark.parametrize("defense", [sg.MPPD(), sg.ShiftGuard()], ids=["MPPD", "ShiftGuard"])
def test_both_passes_of_a_disturbance_draw_the_same_noise(step, defense):
    """Where the disturbance is nothing, so is the difference, however noisy the neurons."""
    for layer in spiking(step.net).values():
        layer.noise = Noise(0.3)
    seed_noise(step.net, 5)
    hooks = defense.start(step.net)
    for _ in range(2):
        step.views = {"adversarial": View(step.x, 1.0)}
        hooks.complete(step)
        for name, view in step.views.items():
            with hooks.watch(step.net, name):
                step.logits[name] = step.net(view.x)
        assert torch.equal(step.logits["clean"], step.logits["adversarial"])
        hooks.penalty(step)
        assert not torch.equal(step.net(step.x), step.logits["clean"]), "the noise does nothing here"


def test_mppd_makes_its_own_disturbance_without_adversarial_training(step):
    hooks = sg.MPPD().start(step.net)
    hooks.complete(step)
    assert step.views["MPPD"].weight == 0
    assert 0 < float((step.views["MPPD"].x - step.x).abs().max()) <= 4 / 255 + 1e-6


def test_the_shift_guard_is_its_formula_and_scaling_does_not_satisfy_it(step):
    hooks = sg.ShiftGuard(lambda_max=2.0).start(step.net)
    step.net.eval()
    step.progress = 1.0

    def value(scale):
        hooks.margins.clear()
        clean, found = logits(12, 3, 8, 4, 5, 5), logits(13, 3, 8, 4, 5, 5)
        hooks.clean.potentials["a"] = scale * clean
        hooks.disturbed.potentials["a"] = scale * (clean + 0.3 * found)
        expected = 0.0
        for c in range(4):
            shifts = (0.3 * scale * found[:, :, c]).abs().flatten()
            m = float(shifts.quantile(0.9))
            u = (scale * (clean + 0.3 * found))[:, :, c]
            expected += float((m - clean[:, :, c].sign() * u).clamp(min=0).mean()) / 4
        got = float(hooks.penalty(step).detach())
        assert got == pytest.approx(2.0 * expected, rel=1e-4)
        return got

    assert value(3.0) == pytest.approx(3 * value(1.0), rel=1e-4)  # MC's value would fall, or stay


def test_what_a_disturbance_can_do_to_the_first_layer_is_attained_and_never_passed(tiny):
    stage, eps = tiny.body.stages[0], 0.03
    conv, norm = stage.conv[0], stage.norm
    tiny.std.fill_(0.5)
    bound = disturbance.attainable(eps, conv, norm, tiny.std, 0.5, 3)

    def potential(x):  # channel 2, an inner pixel, no reset
        now = norm(conv((x - tiny.mean) / tiny.std))[0, 2, 4, 4]
        return torch.stack([now, 1.5 * now, 1.75 * now])

    x = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(potential(x)[0], x)
    worst = potential(x + eps * gradient.sign()) - potential(x)
    assert worst.tolist() == pytest.approx(bound[:, 2].tolist(), rel=1e-4)
    for seed in range(20):
        other = potential(x + eps * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) - 1)) - potential(x)
        assert bool((other.abs() <= bound[:, 2] + 1e-6).all())


def test_the_first_layer_guard_is_its_formula(tiny):
    hooks = sg.FirstLayerGuard(eps=0.1, lambda_max=2.0).start(tiny)
    step = Step(tiny, torch.rand(4, 1, 8, 8), torch.arange(4), progress=1.0)
    hooks.complete(step)
    with hooks.watch(tiny, "clean"), sg.tap(tiny, potentials=True) as t:
        tiny(step.x)
    stage = tiny.body.stages[0]
    bound = disturbance.attainable(0.1, stage.conv[0], stage.norm, tiny.std, 0.5, 3)
    u = t.potentials["body.stages.0.fire"]
    expected = sum(float((bound[s, c] - u[s, :, c].abs()).clamp(min=0).sum().detach()) for s in range(3) for c in range(u.shape[2])) / u.numel()
    got = hooks.penalty(step)
    assert float(got.detach()) == pytest.approx(2.0 * expected, rel=1e-4)
    (gradient,) = torch.autograd.grad(got, stage.conv[0].weight)
    assert float(gradient.abs().sum()) > 0


# conversion


def test_a_converted_neuron_fires_exactly_the_share_of_its_activation():
    current = torch.linspace(-1, 2.5, 701, dtype=torch.float64)
    for steps in (1, 2, 4, 8):
        for threshold in (1.0, 0.5):
            layer = sg.LIF(decay=1.0, reset="soft", threshold=threshold, v_init=threshold / 2)
            rate = layer(current.view(1, 1, -1), timesteps=steps).mean(0)[0]
            expected = [min(max(math.floor(c * steps / threshold + 0.5) / steps, 0.0), 1.0) for c in current.tolist()]
            off_edge = ((current * steps / threshold + 0.5) % 1.0 - 0.5).abs() < 0.499  # sums of doubles decide ties
            assert torch.allclose(rate[off_edge], torch.tensor(expected, dtype=torch.float64)[off_edge]), (steps, threshold)
            analog = Analog(steps, threshold).instead(current.view(1, 1, -1))[0, 0]
            assert torch.allclose(analog[off_edge], rate[off_edge])


def test_the_activation_has_the_gradient_of_the_clip():
    x = torch.tensor([-0.5, -0.1, 0.3, 0.99, 1.1, 1.5], requires_grad=True)
    stairs(x, 4).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


def test_conversion_trains_in_one_step_first_and_spikes_afterwards(step):
    defense = sg.Conversion(share=0.5)
    defense.prepare(step.net)
    hooks = defense.start(step.net)
    step.progress = 0.2
    hooks.begin(step)
    assert step.net.timesteps == 1
    assert step.net(step.x, per_step=True).shape[0] == 1
    step.progress = 0.5
    hooks.begin(step)
    assert step.net.timesteps == 3
    assert all(len(layer.dynamics) == 0 and layer.spec.reset == "soft" and float(layer.decay) == 1 for layer in spiking(step.net).values())
    assert step.net(step.x, per_step=True).shape[0] == 3


def test_conversion_refuses_thresholds_that_nothing_would_learn():
    net = build("small", classes=10, in_shape=(1, 8, 8), timesteps=3, neuron=Neuron(learn_threshold=True), width=2)
    with pytest.raises(UserError, match="learn_threshold"):
        sg.Conversion().prepare(net)


def test_conversions_neurons_can_be_trained_from_the_start(step):
    defense = sg.Conversion(share=0.0)
    defense.prepare(step.net)
    hooks = defense.start(step.net)
    step.progress = 0.0
    hooks.begin(step)
    assert hooks.settled
    assert step.net.timesteps == 3
    assert all(layer.spec.v_init == 0.5 and layer.spec.reset == "soft" for layer in spiking(step.net).values())


def test_the_ann_twin_is_the_same_layers_with_relu(step):
    net = step.net.eval()
    sg.ANNTwin().prepare(net)
    at = (step.x - net.mean) / net.std
    for stage in net.body.stages:
        at = torch.relu(stage.norm(stage.conv[0](at)))
        at = nn.functional.avg_pool2d(at, 2)
    torch.testing.assert_close(net(step.x), net.head(at.flatten(1)))
    with pytest.raises(UserError, match="both set"):
        sg.compose(sg.ANNTwin(), sg.TGO())


def test_helpers_of_sr():
    z, y = torch.tensor([[2.0, 1.0, 3.0], [0.0, 5.0, 4.0]]), torch.tensor([2, 1])
    assert best_wrong(z, y).tolist() == [0, 2]
    assert chance(z, y, best_wrong(z, y)).tolist() == pytest.approx([1 / (1 + math.exp(-1))] * 2)


def test_weight_decay_leaves_the_parameters_of_neurons_alone(little_data):
    from spikeguard.training.loop import _Trainer

    trainer = _Trainer(little_recipe(defenses=(sg.FEEL(radii=()),)), little_data, torch.device("cpu"))
    decayed = {id(p) for p in trainer.optimiser.param_groups[0]["params"]}
    names = {name for name, p in trainer.net.named_parameters() if id(p) in decayed}
    assert names == {n for n, p in trainer.net.named_parameters() if p.dim() > 1 and "dynamics" not in n}
