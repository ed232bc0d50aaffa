"""Attacks: inside their budget, honest about cost, and as strong as their textbook."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard import attacks
from spikeguard.attacks import Attacked
from spikeguard.auditing import witnesses
from spikeguard.auditing.run import run_suite
from spikeguard.auditing.state import CLEAN_WRONG, ROBUST
from spikeguard.auditing.suite import QUICK
from spikeguard.auditing.task import Task
from spikeguard.errors import AttackError, UserError
from spikeguard.gradients import Own
from spikeguard.losses import Targeted, margin
from spikeguard.models import Model
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import spiking
from spikeguard.threat import THREATS, Threat

CALLS: dict[str, Callable[[Model, Tensor, Tensor, Threat], Attacked]] = {
    "fgsm": lambda m, x, y, t: sg.fgsm(m, x, y, t),
    "rfgsm": lambda m, x, y, t: sg.rfgsm(m, x, y, t),
    "bim": lambda m, x, y, t: sg.bim(m, x, y, t, steps=4),
    "pgd": lambda m, x, y, t: sg.pgd(m, x, y, t, steps=4, restarts=2),
    "pgd textbook": lambda m, x, y, t: sg.pgd(m, x, y, t, steps=4, restarts=2, early_stop=False),
    "pgd eot": lambda m, x, y, t: sg.pgd(m, x, y, t, steps=2, restarts=1, gradient=sg.gradients.EOT(3)),
    "pgd straight-through": lambda m, x, y, t: sg.pgd(
        m, x, y, t, steps=4, restarts=1, gradient=sg.gradients.SwapSurrogate(sg.surrogates.StraightThrough())
    ),
    "sapgd": lambda m, x, y, t: sg.sapgd(m, x, y, t, steps=6, restarts=2),
    "sapgd own": lambda m, x, y, t: sg.sapgd(m, x, y, t, steps=6, gradient=Own()),
    "sapgd triangle": lambda m, x, y, t: sg.sapgd(
        m, x, y, t, steps=4, gradient=sg.gradients.ASSG(0.8, sg.surrogates.Triangle())
    ),
    "apgd": lambda m, x, y, t: sg.apgd(m, x, y, t, steps=9, restarts=2),
    "apgd dlr": lambda m, x, y, t: sg.apgd(m, x, y, t, steps=6, loss="dlr"),
    "apgd targeted": lambda m, x, y, t: sg.apgd_targeted(m, x, y, t, steps=4, targets=3),
    "apgd targeted margin": lambda m, x, y, t: sg.apgd_targeted(
        m, x, y, t, steps=4, targets=20, loss="margin", gradient=sg.gradients.ASSG()
    ),
    "mi": lambda m, x, y, t: sg.pgd(m, x, y, t, steps=4, restarts=1, momentum=1.0),
    "sapgd targeted": lambda m, x, y, t: sg.targeted(m, x, y, t, rule="sapgd", steps=3, targets=2),
    "pgd targeted": lambda m, x, y, t: sg.targeted(m, x, y, t, rule="pgd", steps=3, targets=9),
    "pgd from a point": lambda m, x, y, t: sg.pgd(
        m, x, y, t, steps=3, restarts=2, first=t.project(torch.rand(x.shape), x)
    ),
    "square": lambda m, x, y, t: sg.square(m, x, y, t, queries=30),
}


class Linear(nn.Module):
    """Logits are linear: the worst input in the ball is known in closed form."""

    def __init__(self, classes: int = 2, side: int = 4) -> None:
        super().__init__()
        self.flat = nn.Linear(side * side, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.flat(x.flatten(1))
        return logits


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "eps", [0.03, torch.tensor([0.0, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0])], ids=["one", "per sample"]
)
def test_inside_the_budget_and_the_model_is_left_unchanged(
    tiny: Classifier, pair: tuple[Tensor, Tensor], name: str, eps: float | Tensor
) -> None:
    x, y = pair
    tiny.train()
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    got = CALLS[name](tiny, x, y, sg.Linf(eps))
    assert tiny.training
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())
    assert all(p.grad is None for p in tiny.parameters())
    assert all(not layer.requests for layer in spiking(tiny).values())
    budget = eps if isinstance(eps, float) else eps.view(-1, 1, 1, 1)
    assert ((got.x - x).abs() <= budget + 1e-6).all()
    assert got.x.min() >= 0
    assert got.x.max() <= 1
    assert got.broken.dtype == torch.bool
    assert got.forwards > 0
    tiny.eval()
    if "textbook" not in name:
        assert torch.equal(tiny(got.x).argmax(1) != y, got.broken), (
            "a sample counts as broken and its input is not, or the reverse"
        )


@pytest.mark.parametrize(
    "threat",
    [sg.L2(0.7), sg.L1(3.0), sg.L2(torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0, 3.0, 9.0]))],
    ids=["l2", "l1", "l2 per sample"],
)
@pytest.mark.parametrize(
    "name", ["fgsm", "bim", "pgd", "mi", "sapgd", "apgd", "apgd targeted margin", "pgd targeted"]
)
def test_inside_the_budget_of_other_norms_and_it_is_used(
    tiny: Classifier, pair: tuple[Tensor, Tensor], name: str, threat: Threat
) -> None:
    x, y = pair
    got = CALLS[name](tiny, x, y, threat)
    threat.check(got.x, x)
    assert torch.equal(tiny(got.x).argmax(1) != y, got.broken)
    walked = sg.pgd(tiny, x, y, threat, steps=5, restarts=1, early_stop=False)
    length, eps = threat.length(walked.x - x), threat.per_sample(x).flatten()
    assert (length >= 0.7 * eps.clamp(max=1.0) - 1e-6).all(), "the budget is not used"


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "pgd textbook", "sapgd own", "apgd", "square"])
def test_a_linear_model_is_broken_exactly_where_the_closed_form_says(name: str) -> None:
    """With two classes the margin can fall by at most eps |w_1 - w_0|_1.

    And every attack but random search reaches that.
    """
    torch.manual_seed(0)
    model, x = Linear(), 0.3 + 0.4 * torch.rand(200, 1, 4, 4)
    with torch.no_grad():
        model.flat.bias.sub_(model(x).mean(0))  # about half of the samples on either side
    y = model(x).argmax(1)
    eps = 0.03
    weight = (model.flat.weight[1] - model.flat.weight[0]).abs().sum()
    breakable = margin(model(x), y) + eps * weight > 0
    assert 0.2 < float(breakable.float().mean()) < 0.8
    if name == "square":
        got = sg.square(model, x, y, sg.Linf(eps), queries=400)
    else:
        got = CALLS[name](model, x, y, sg.Linf(eps))
    close = (margin(model(x), y) + eps * weight).abs() < (0.05 if name in ("square", "sapgd own") else 1e-5)
    assert torch.equal(got.broken[~close], breakable[~close])


SHORT = {"steps": 3, "queries": 8, "tries": 3, "restarts": 1, "targets": 2, "searches": 2}


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_every_attack_of_the_registry_runs_under_its_norms_and_refuses_others(
    tiny: Classifier, pair: tuple[Tensor, Tensor], name: str, norm: str
) -> None:
    x, y = pair
    entry = attacks.ATTACKS[name]
    assert getattr(attacks, name) is entry.function
    assert entry.summary.endswith(".")
    assert "\n" not in entry.summary
    settings, threat = {k: v for k, v in SHORT.items() if k in entry.parameters}, THREATS[norm](0.2)
    if norm not in entry.norms:
        with pytest.raises(UserError, match=f"{name} is an attack under"):
            entry.function(tiny, x, y, threat, **settings)
        return
    got = entry.function(tiny, x, y, threat, **settings)
    threat.check(got.x, x)
    assert torch.equal(tiny(got.x).argmax(1) != y, got.broken)


def test_the_registry_holds_every_public_attack() -> None:
    others = {"ATTACKS", "Attack", "Attacked"}
    assert set(attacks.ATTACKS) == set(attacks.__all__) - others


def test_a_loss_with_a_target_per_sample_keeps_its_targets_over_restarts(
    tiny: Classifier, pair: tuple[Tensor, Tensor]
) -> None:
    x, y = pair
    loss = Targeted("margin", (y + 1) % 10)
    whole = sg.pgd(tiny, x, y, sg.Linf(0.01), steps=3, restarts=3, loss=loss)
    for row in range(7):
        one = sg.pgd(
            tiny,
            x[[row]],
            y[[row]],
            sg.Linf(0.01),
            steps=3,
            restarts=3,
            loss=loss.select(torch.tensor([row])),
            index=torch.tensor([row]),
        )
        torch.testing.assert_close(one.x[0], whole.x[row], atol=1e-6, rtol=0)
    assert torch.equal(loss.targets, (y + 1) % 10)


def test_more_steps_restarts_or_members_never_raise_robust_accuracy(
    tiny: Classifier, pair: tuple[Tensor, Tensor]
) -> None:
    x, y = pair
    threat = sg.Linf(0.02)
    for (steps, restarts), (more_steps, more_restarts) in (((4, 1), (4, 3)), ((3, 1), (9, 1))):
        a = sg.pgd(tiny, x, y, threat, steps=steps, restarts=restarts, step_size=0.005)
        b = sg.pgd(tiny, x, y, threat, steps=more_steps, restarts=more_restarts, step_size=0.005)
        assert (b.broken | ~a.broken).all()
    fewer = run_suite(Task(tiny, x, y, threat, QUICK[:2]))
    more = run_suite(Task(tiny, x, y, threat, QUICK[:4]))
    assert (more.right <= fewer.right).all()
    assert list(fewer.after.values()) == sorted(fewer.after.values(), reverse=True)


def test_at_eps_zero_the_worst_case_is_the_clean_accuracy(
    tiny: Classifier, pair: tuple[Tensor, Tensor]
) -> None:
    x, y = pair
    y = torch.where(torch.arange(7) < 2, (y + 1) % 10, y)
    state = run_suite(Task(tiny, x, y, sg.Linf(0.0), QUICK[:5]))
    assert float(state.clean.mean()) == float(state.right.mean()) == pytest.approx(5 / 7)
    assert state.first_by.tolist() == [CLEAN_WRONG] * 2 + [ROBUST] * 5


def test_results_do_not_depend_on_batch_size_or_on_company(
    tiny: Classifier, pair: tuple[Tensor, Tensor]
) -> None:
    x, y = pair
    threat, index = sg.Linf(0.02), torch.arange(100, 107)
    whole = sg.pgd(tiny, x, y, threat, steps=4, restarts=2, index=index)
    parts = [
        sg.pgd(tiny, x[r], y[r], threat, steps=4, restarts=2, index=index[r])
        for r in torch.arange(7).split(3)
    ]
    assert torch.equal(whole.broken, torch.cat([p.broken for p in parts]))
    torch.testing.assert_close(whole.x, torch.cat([p.x for p in parts]), atol=1e-6, rtol=0)


def test_a_missing_gradient_is_an_error_not_robustness(pair: tuple[Tensor, Tensor]) -> None:
    x, _ = pair

    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Linear(10, 8)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inner(x.detach())
            return logits

    class NoGrad(Detached):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inner(x)
            return logits

    for model in (Detached(), NoGrad()):
        with pytest.raises(AttackError, match="no gradient reaches the input"):
            sg.pgd(model, x, model(x).argmax(1), sg.Linf(0.1), steps=2)


def test_a_gradient_that_is_not_finite_is_an_error(pair: tuple[Tensor, Tensor]) -> None:
    x, _ = pair

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([torch.sqrt(x.flatten(1).mean(1) * 0), x.flatten(1).mean(1)], 1)

    with pytest.raises(AttackError, match="not finite"):
        sg.fgsm(Root(), x, torch.ones(7, dtype=torch.int64), sg.Linf(0.1))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            torch.zeros(2, 1, 8, 8),
            torch.tensor([0, 10]),
            "labels lie in [0, 10], the model has classes 0 to 9",
        ),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), None, "torch.uint8; pass floats"),
        (torch.full((2, 1, 8, 8), 200.0), None, "divide by 255"),
        (torch.full((2, 1, 8, 8), -0.5), None, "normalize inside the model"),
        (torch.full((2, 1, 8, 8), float("nan")), None, "not finite"),
        (torch.zeros(0, 1, 8, 8), None, "N >= 1"),
        (torch.zeros(2, 3, 8, 8), None, "must be floats of shape [N, 1, 8, 8]"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(3, dtype=torch.int64), "labels are"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2), "labels are"),
    ],
)
def test_bad_images_are_refused_in_one_line(
    tiny: Classifier, images: Tensor, labels: Tensor | None, message: str
) -> None:
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    for attack in (sg.pgd, sg.fgsm, sg.sapgd, sg.square):
        with pytest.raises(UserError) as error:
            attack(tiny, images, labels, sg.Linf(0.1))
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_witnesses_survive_storage_and_an_altered_one_does_not_count(
    tiny: Classifier, pair: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    x, _ = pair
    model, threat = Linear(10, 8), sg.Linf(0.05)
    y = model(x).argmax(1)
    got = sg.pgd(model, x, y, threat, restarts=1)
    assert 0 < int(got.broken.sum()) < 7, "the test needs broken and standing samples"
    claimed = torch.ones_like(got.broken)
    kept, confirmed = witnesses.keep(model, x, y, got.x, claimed, threat)
    assert torch.equal(confirmed, got.broken), "a sample counted without a witness that holds"
    path = tmp_path / "w.npz"
    kept.save(path)
    rows, inputs = witnesses.Witnesses.load(path).read(x, threat)
    assert sorted(rows.tolist()) == torch.nonzero(got.broken).flatten().tolist()
    threat.check(inputs, x[rows])
    assert witnesses.misclassified(model, inputs, y[rows]).all()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="holds no witnesses"):
        witnesses.Witnesses.load(path)


def test_witnesses_are_not_checked_through_an_open_tap(tiny: Classifier, pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    with sg.tap(tiny, noise=0.5), pytest.raises(UserError, match="untouched model"):
        witnesses.misclassified(tiny, x, y)


def test_momentum_follows_its_formula(tiny: Classifier, pair: tuple[Tensor, Tensor]) -> None:
    from spikeguard.attacks.pgd import SignStep

    x, _ = pair
    rule, total = SignStep(sg.Linf(0.1), torch.full((7, 1, 1, 1), 0.01), momentum=0.9), torch.zeros_like(x)
    for k in range(3):
        g = torch.randn(x.shape, generator=torch.Generator().manual_seed(k))
        total = 0.9 * total + g / (g.abs().mean((1, 2, 3), keepdim=True) + 1e-12)
        torch.testing.assert_close(rule.step(k, x, g, torch.zeros(7)), x + 0.01 * total.sign())


def test_the_step_at_which_a_sample_breaks_is_reported(tiny: Classifier, pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    long = sg.pgd(tiny, x, y, sg.Linf(0.05), steps=8, step_size=0.01, restarts=1)
    assert torch.equal(long.when >= 0, long.broken)
    last = int(long.when.max())
    assert last > 0
    shorter = sg.pgd(tiny, x, y, sg.Linf(0.05), steps=last - 1, step_size=0.01, restarts=1)
    assert torch.equal(shorter.broken, long.broken & (long.when < last))


def test_steps_are_counted_over_restarts(tiny: Classifier, pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    whole = sg.pgd(tiny, x, y, sg.Linf(0.004), steps=2, step_size=0.004, restarts=6)
    counts = [
        sg.pgd(tiny, x, y, sg.Linf(0.004), steps=2, step_size=0.004, restarts=r).broken for r in range(1, 7)
    ]
    assert int(counts[-1].sum()) > int(counts[0].sum()), "restarts break nothing more here"
    for r, broken in enumerate(counts, 1):
        assert bool((whole.when[broken] <= 2 * r).all())
        assert bool((whole.when[whole.broken & ~broken] >= 2 * r).all())
