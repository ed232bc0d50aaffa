"""Every flag: something that provokes it, and something like it that does not."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from narrow import applied, changed
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.auditing import checks, raise_flags
from spikeguard.auditing.consistency import inconsistencies
from spikeguard.auditing.flags import KINDS
from spikeguard.auditing.member import Member
from spikeguard.auditing.raise_flags import all_flags, from_checks, from_controls
from spikeguard.auditing.run import run_suite, settle
from spikeguard.auditing.state import State
from spikeguard.auditing.suite import FGSM, PGD_20
from spikeguard.auditing.task import Plan, Task
from spikeguard.errors import UserError
from spikeguard.records.schema import (
    Controls,
    FullBudget,
    NoiseRow,
    Origin,
    PairRow,
    SecondAttack,
    Ties,
    ZeroBudget,
)

ERRORS = {
    "no-gradient",
    "nothing-ran",
    "not-reproduced",
    "random-without-eot",
    "state-carried-over",
    "model-changed",
    "attack-invalid",
    "changed-at-eps-0",
    "not-broken-at-eps-1",
    "no-better-than-noise",
    "black-box-beats-white-box",
    "depends-on-batch",
    "no-logits",
    "decoy-logits",
    "spikes-unreached",
}
X, Y = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3


def test_level_error_is_kept_for_what_makes_the_number_worthless() -> None:
    assert {name for name, kind in KINDS.items() if kind.level == "error"} == ERRORS


def test_every_flag_has_its_page_written_from_the_code() -> None:
    import flag_pages as tool

    for name, kind in KINDS.items():
        assert (tool.FOLDER / f"{name}.md").read_text() == tool.page(name, kind)
    assert (tool.FOLDER / "README.md").read_text() == tool.index()
    assert {p.stem for p in tool.FOLDER.glob("*.md")} == {*KINDS, "README"}


# what is seen before any attack


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.map = nn.Linear(16, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.calls: Tensor
        self.last = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 5 * self.map(x.flatten(1))
        return logits


class Counting(Plain):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Aging(Counting):
    """What it counts weighs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.01 * self.calls * x.flatten(1)[:, :3]


class Waking(Plain):
    """In training mode, where its logits are others, from the first call on."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x * 0.5 if self.training else x)
        self.train()
        return logits


class Remembering(Plain):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x) + 0.1 * self.last
        self.last = logits.detach().mean(0)
        return logits


class Sociable(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(4 * (x - x.mean(0)))


class Probable(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Flat(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(super().forward(x).argmax(1), 3).float()


class Broken(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0.0


class Loud(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * super().forward(x)


class TwoFaced(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (1.0 if x.requires_grad else 0.0)


class Cut(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class Bent(Plain):
    """A gradient there is, but through an eighth of the pixels only."""

    def forward(self, x: Tensor) -> Tensor:
        kept = x.flatten(1)
        logits: Tensor = 5 * self.map(torch.cat([kept[:, :2], kept[:, 2:].detach()], 1))
        return logits


class Firing(torch.autograd.Function):
    """Spikes where two currents coincide, by a comparison that is seen."""

    slope = 1.0

    @classmethod
    def coincide(cls, a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).abs() < 0.5).to(a)

    @classmethod
    def forward(cls, ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.slope = cls.slope
        return cls.coincide(a, b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return ctx.slope * grads[0], ctx.slope * grads[0]


class FiringElsewhere(Firing):
    """The same spikes by another library."""

    @classmethod
    def coincide(cls, a: Tensor, b: Tensor) -> Tensor:
        return torch.from_numpy((abs(a.detach().numpy() - b.detach().numpy()) < 0.5).astype("float32"))


class Walled(Firing):
    slope = 0.0


class WalledElsewhere(FiringElsewhere):
    slope = 0.0


class Spiking(Plain):
    fire: type[torch.autograd.Function] = Firing

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(applied(self.fire, 2 * x, 1 - x.flip(3)))


class Unread(Spiking):
    fire = FiringElsewhere


class Unreached(Spiking):
    fire = WalledElsewhere


class Silenced(Spiking):
    fire = Walled


class Noisy(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(len(x), 3)


SEEN = {
    "model-changed": (Aging, Waking),
    "state-carried-over": (Remembering,),
    "depends-on-batch": (Sociable,),
    "no-logits": (Probable, Flat, Broken),
    "saturated-logits": (Loud,),
    "decoy-logits": (TwoFaced,),
    "zero-gradient": (Cut,),
    "locked-gradient": (Bent,),
    "spikes-unread": (Unread,),
    "spikes-unreached": (Unreached,),
}


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, kinds in SEEN.items() for k in kinds])
def test_a_check_before_the_attacks_sees_it(name: str, kind: type[Plain]) -> None:
    found = checks.check_model(kind().eval(), X, Y, random=False).findings
    assert name in found, found
    assert from_checks(found)[0].evidence


def test_spikes_without_slope_that_can_be_read_are_reached() -> None:
    found = checks.check_model(Silenced().eval(), X, Y, random=False).findings
    assert set(found) == {"zero-gradient"}


def test_a_number_behind_spikes_that_no_gradient_reaches_is_worthless(short_suite: None) -> None:
    x = X[:12]
    for kind, raised in ((Unreached, True), (Unread, False), (Spiking, False)):
        got = sg.audit(kind().eval(), x, kind()(x).argmax(1), sg.Linf(0.02), effort="quick")
        assert ("spikes-unreached" in {f.id for f in got.flags}) is raised, kind


@pytest.mark.parametrize("kind", [Plain, Noisy, Counting, Spiking])
def test_nothing_is_found_in_an_honest_model(kind: type[Plain]) -> None:
    found = checks.check_model(kind().eval(), X, Y, random=kind is Noisy)
    assert found.findings == {}


# controls


def controls(**changes: object) -> Controls:
    good = Controls(
        images=50,
        zero_budget=ZeroBudget(clean=0.9, left=0.9),
        full_budget=FullBudget(left=0.0, chance=0.1),
        against_noise=(NoiseRow(right=45, noise=5, gradient=40, p=1e-9, better=True),) * 2,
        pairs=(PairRow("PGD-20", "FGSM", only_weaker=0, only_stronger=9, p=0.004),),
    )
    return changed(good, **changes)


def pair(strong: str, weak: str) -> tuple[PairRow, ...]:
    return (PairRow(strong, weak, only_weaker=9, only_stronger=0, p=0.004),)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("changed-at-eps-0", {"zero_budget": ZeroBudget(clean=0.9, left=0.8)}),
        ("not-broken-at-eps-1", {"full_budget": FullBudget(left=0.3, chance=0.1)}),
        (
            "no-better-than-noise",
            {"against_noise": (NoiseRow(right=45, noise=5, gradient=5, p=1.0, better=False),) * 2},
        ),
        ("pgd-weaker-than-fgsm", {"pairs": pair("PGD-20", "FGSM")}),
        ("more-steps-weaker", {"pairs": pair("PGD-40", "PGD-20")}),
        ("apgd-weaker-than-pgd", {"pairs": pair("APGD-40", "PGD-40")}),
        ("eot-weaker", {"pairs": pair("EOT-10", "EOT-1")}),
    ],
)
def test_a_control_that_fails_is_a_flag(name: str, changes: dict[str, object]) -> None:
    assert from_controls(controls()) == []
    assert [f.id for f in from_controls(controls(**changes))] == [name]


def test_a_network_that_noise_breaks_too_is_not_accused() -> None:
    easy = (NoiseRow(right=45, noise=44, gradient=45, p=1.0, better=True),) * 2
    assert from_controls(controls(against_noise=easy)) == []
    for right, noise in (
        (8, 1),
        (12, 5),
        (20, 13),
    ):  # every image that noise leaves is broken, and that is too few to tell
        few = (NoiseRow(right, noise, gradient=right, p=0.0156, better=True),) * 2
        assert from_controls(controls(against_noise=few)) == []


# what follows from the result


def after_an_audit(**changes: object) -> list[str]:
    """Flags of a made-up state of 400 images.

    Half broken by PGD with the own gradient, at the border of the budget.
    """
    n = 400
    x, y = torch.full((n, 1, 2, 2), 0.5), torch.arange(n) % 10
    members = (
        FGSM,
        PGD_20,
        Member("Square", "scores", sg.square),
        Member("long", "own gradient", sg.pgd, {"steps": 100}),
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 10))
    task = Task(model, x, y, sg.Linf(0.1), members)
    state = State.start(x, torch.ones(n), torch.zeros(n), 2)
    state.found = x + 0.1
    state.first_by[: n // 2], state.second_by[: n // 2] = 1, 2
    state.by_family[:, : n // 2] = 0.0
    state.right[: n // 2] = 0.0
    state.alone, state.attempted = {"pgd20": 0.5 * n}, {"long": 400, "pgd20": 400}
    control = controls(survivors_with_gradient={"own": 1.0}, second_attack=SecondAttack(0, n))
    change = changes.get("change")
    if callable(change):
        made = SimpleNamespace(task=task, state=state, control=control)
        change(made)
        control = made.control
    return [f.id for f in all_flags(task, state, {}, control, str(changes.get("effort", "quick")))]


def _no_gradient(a: SimpleNamespace) -> None:
    a.control = replace(a.control, survivors_with_gradient={"own": 0.0, "bpda": 0.05})


def _black(a: SimpleNamespace) -> None:
    a.control = replace(a.control, second_attack=SecondAttack(9, 400, left=8, share_low=0.01))


def _black_refuted(a: SimpleNamespace) -> None:
    a.control = replace(a.control, second_attack=SecondAttack(9, 400, left=1, share_low=0.0001))


def _masked(a: SimpleNamespace) -> None:
    a.state.alone = {"pgd20": 0.7 * 400}
    a.state.by_family[0, 120:] = 1.0


def _long(a: SimpleNamespace) -> None:
    a.state.steps = {"long": [0] * 60 + [1] * 41}


def _settled(a: SimpleNamespace) -> None:
    a.state.steps = {"long": [41, *[0] * 100]}


def _failed(a: SimpleNamespace) -> None:
    a.state.failed = {"long": "no gradient reaches the input"}


def _invalid(a: SimpleNamespace) -> None:
    a.state.failed = {"long": "attack left its budget by 1e-2 or left [0, 1]"}


def _nothing(a: SimpleNamespace) -> None:
    a.state.attempted = {}
    a.state.failed = {m.id: "RuntimeError: no" for m in a.task.members}


def _lost(a: SimpleNamespace) -> None:
    a.state.unconfirmed = {"long": 9}


def _ignorant(a: SimpleNamespace) -> None:
    a.state.clean = torch.full((400,), 0.15)


def _timid(a: SimpleNamespace) -> None:
    a.state.found = a.task.x + 0.01


def _random(a: SimpleNamespace) -> None:
    a.task.random = True


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("no-gradient", _no_gradient),
        ("black-box-beats-white-box", _black),
        ("black-box-first", _black_refuted),
        ("masking", _masked),
        ("not-converged", _long),
        ("attack-failed", _failed),
        ("attack-invalid", _invalid),
        ("witness-lost", _lost),
        ("clean-accuracy-low", _ignorant),
        ("budget-unused", _timid),
        ("random-model", _random),
    ],
)
def test_what_follows_from_the_result_is_a_flag(name: str, change: Callable[[SimpleNamespace], None]) -> None:
    assert after_an_audit() == []
    assert after_an_audit(change=change) == [name]


def test_an_audit_of_which_nothing_ran_is_not_reliable() -> None:
    assert set(after_an_audit(change=_nothing)) == {"nothing-ran", "attack-failed"}


def _ran_in_part(a: SimpleNamespace) -> None:
    a.state.failed = {m.id: "RuntimeError: no" for m in a.task.members}


def _said_by_the_model(a: SimpleNamespace) -> None:
    a.state.failed = {"long": "RuntimeError: the encoder returned values of another shape"}


def _lost_again_and_again(a: SimpleNamespace) -> None:
    a.state.unconfirmed = {f"member {k}": 1 for k in range(16)}


def _unmoved(a: SimpleNamespace) -> None:
    a.state.found = a.task.x.clone()


def _more_steps_of_its_own(a: SimpleNamespace) -> None:
    a.state.alone = {"pgd20": 0.7 * 400}  # longer attacks with the own gradient take the rest


def _agreeing(a: SimpleNamespace) -> None:
    _masked(a)
    a.task.families = ["own gradient", "bpda"]
    a.control = replace(a.control, gradients_agree=True)


def _masked_a_little(a: SimpleNamespace) -> None:
    a.state.alone = {"pgd20": 0.555 * 400}
    a.state.by_family[0, 178:] = 1.0


def _black_few(a: SimpleNamespace) -> None:
    a.control = replace(a.control, second_attack=SecondAttack(4, 1000, left=4, share_low=0.0014))


def _few_without_gradient(a: SimpleNamespace) -> None:
    a.state.right[201:] = 0.0
    _no_gradient(a)


@pytest.mark.parametrize(
    ("change", "raised"),
    [
        (_ran_in_part, ["attack-failed"]),
        (_said_by_the_model, ["attack-failed"]),
        (_lost_again_and_again, []),
        (_unmoved, []),
        (_more_steps_of_its_own, []),
        (_agreeing, []),
        (_masked_a_little, []),
        (_black_few, ["black-box-first"]),
        (_few_without_gradient, []),
    ],
)
def test_a_flag_says_no_more_than_what_was_seen(
    change: Callable[[SimpleNamespace], None], raised: list[str]
) -> None:
    assert after_an_audit(change=change) == raised


def _all_broken(a: SimpleNamespace) -> None:
    a.state.right[:] = 0.0
    _black(a)
    a.control = replace(
        a.control,
        full_budget=FullBudget(left=0.9, chance=0.1),
        against_noise=(NoiseRow(right=45, noise=5, gradient=5, p=1.0, better=False),) * 2,
    )


def test_where_no_image_is_left_no_attack_is_called_too_weak() -> None:
    assert after_an_audit(change=_all_broken) == ["black-box-first"]


@pytest.mark.parametrize(
    ("clean", "n", "classes", "low"),
    [
        *[
            (0.15, 400, 10, True),
            (0.3, 400, 10, False),
            (0.002, 400, 1000, False),
            (0.0005, 4000, 1000, True),
        ],
        *[(0.95, 60, 2, False), (0.55, 60, 2, True), (0.7, 60, 2, False), (0.4, 60, 3, True)],
        *[(0.0, 1, 10, False), (0.0, 12, 10, True)],
    ],
)
def test_clean_accuracy_is_low_where_it_is_hardly_better_than_chance(
    clean: float, n: int, classes: int, low: bool
) -> None:
    assert raise_flags.hardly_better_than_chance(clean, n, 1 / classes) is low


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_budget": ZeroBudget(clean=0.9, left=0.88)},  # one image of fifty, by rounding
        {"full_budget": FullBudget(left=0.12, chance=0.001)},
        {"full_budget": FullBudget(left=1.0, chance=0.1, breakable=False)},
        {"against_noise": (NoiseRow(right=45, noise=0, gradient=0, p=1.0, better=False),) * 9},
    ],
)
def test_a_control_that_shows_nothing_is_no_flag(changes: dict[str, Any]) -> None:
    assert from_controls(controls(**changes)) == []


def test_no_flag_without_need() -> None:
    assert after_an_audit(change=_settled) == []
    assert after_an_audit(effort="standard") == []


def test_values_that_are_not_finite_are_flagged_as_that_and_nothing_else() -> None:
    class Broken(Plain):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits.masked_fill(x.flatten(1)[:, :1] > 0.5, float("nan"))

    found = checks.check_model(Broken().eval(), X, Y, random=False)
    assert set(found.findings) - {"zero-gradient"} == {"no-logits"}
    assert "not finite" in str(found.findings["no-logits"]["reason"])


def test_values_that_are_not_finite_under_attack_are_breaks_with_a_flag(short_suite: None) -> None:
    class Hole(Plain):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x).masked_fill(x.flatten(1)[:, :1] > 0.51, float("nan"))

    x = X[:12].clone()
    x[:, 0, 0, 0] = 0.5
    y = Plain()(x).argmax(1)
    got = sg.audit(Hole().eval(), x, y, sg.Linf(0.02), effort="quick")
    assert "broken-by-nan" in {f.id for f in got.flags}
    assert got.clean_accuracy == 1.0
    assert got.robust_accuracy == 0.0
    assert "broken-by-nan" not in {
        f.id for f in sg.audit(Plain().eval(), x, y, sg.Linf(0.02), effort="quick").flags
    }


def test_a_model_that_needs_one_size_of_batch_is_refused_in_one_line() -> None:
    class Rigid(Plain):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x) in (8, len(X))
            return super().forward(x)

    with pytest.raises(UserError, match=r"fails on torch.float32 images of shape \(1, .* \(AssertionError"):
        sg.audit(Rigid().eval(), X, Y, sg.Linf(0.1), effort="quick")


def test_few_images_are_flagged(short_suite: None) -> None:
    got = sg.audit(Plain().eval(), X[:20], Plain()(X[:20]).argmax(1), sg.Linf(0.01), effort="quick")
    assert "few-images" in {f.id for f in got.flags}


class Coarse(Plain):
    """Scores on a coarse grid, as rates of few steps, with the gradient of what was rounded."""

    def forward(self, x: Tensor) -> Tensor:
        fine = super().forward(x)
        return fine + (4 * (fine / 4).round() - fine).detach()


def test_verdicts_that_rest_on_a_tie_are_counted(short_suite: None) -> None:
    model, x = Coarse().eval(), X[:20]
    y = model(x).argmax(1)
    top = model(x).topk(2, 1).values
    tied = int((top[:, 0] == top[:, 1]).sum())
    assert 4 < tied < 20
    got = sg.audit(model, x, y, sg.Linf(0.0), effort="quick")
    assert got.record.ties == Ties(clean=tied, broken=0)
    (raised,) = [f for f in got.flags if f.id == "tied-scores"]
    assert f"({tied} of 20 images" in raised.message
    assert inconsistencies(got.record) == []
    hidden = replace(got.record, flags=tuple(f for f in got.flags if f.id != "tied-scores"))
    assert any("tied-scores is missing" in line for line in inconsistencies(hidden))
    fine = sg.audit(Plain().eval(), x, Plain()(x).argmax(1), sg.Linf(0.0), effort="quick")
    assert fine.record.ties == Ties(0, 0)


def test_a_random_model_attacked_without_averaging_is_an_error() -> None:
    from spikeguard.auditing.record import attack_record

    model = Noisy().eval()
    for draws, expected in ((1, ["random-without-eot"]), (4, [])):
        task = Task(
            model,
            X,
            Y,
            sg.Linf(0.1),
            [Member("PGD", "own gradient", sg.pgd, {"steps": 2, "restarts": 1}, all=True)],
            plan=Plan(eot_draws=draws),
        )
        state = run_suite(task)
        settle(task, state)
        assert [f.id for f in attack_record(task, state, "pgd", {}, Origin()).flags] == expected


def test_every_flag_is_provoked_somewhere() -> None:
    here = "".join(
        next(Path(__file__).parents[1].rglob(f"test_{name}.py")).read_text()
        for name in ("flags", "audit", "audit_records")
    )
    for name in KINDS:
        assert here.count(f'"{name}"') > (1 if name in ERRORS else 0), name
    assert len(list(itertools.chain(*SEEN.values()))) >= len(SEEN)
