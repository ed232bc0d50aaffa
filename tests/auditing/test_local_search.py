"""What the local search means in an audit: who it attacks, and what is concluded from what it breaks."""

import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.auditing import second_attack
from spikeguard.auditing.choice import members
from spikeguard.auditing.findings import convergence, masking
from spikeguard.auditing.member import LOCAL, Member
from spikeguard.auditing.raise_flags import all_flags
from spikeguard.auditing.run import run_suite
from spikeguard.auditing.state import State
from spikeguard.auditing.suite import PGD_20, SUITES
from spikeguard.auditing.task import Plan, Task
from spikeguard.records.schema import Controls, FullBudget, SecondAttack, ZeroBudget

N = 100
LAST = next(m for m in SUITES["standard"] if m.family == LOCAL)
SQUARE = Member("square", "scores", sg.square, {"queries": 10})


class Needs(nn.Module):
    """The wrong class wins where at least ``count`` of four pixels lie above 0.55."""

    def forward(self, x: Tensor) -> Tensor:
        high = (x > 0.55).flatten(1).sum(1).to(x.dtype)
        return torch.stack([torch.full_like(high, 2.5), high], 1) + 0 * x.flatten(1).sum(1, keepdim=True)


def made(*families: str) -> tuple[Task, State]:
    """PGD-20, Square and the local search; the first ten images fall to each of these families."""
    x, y = torch.full((N, 1, 2, 2), 0.5), torch.zeros(N, dtype=torch.long)
    task = Task(Needs(), x, y, sg.Linf(0.1), (PGD_20, LAST, SQUARE), plan=Plan(random=False))
    state = State.start(x, torch.ones(N), torch.zeros(N), len(task.families))
    state.alone, state.attempted = {PGD_20.id: float(N)}, {m.id: N for m in task.members}
    for family in families:
        state.by_family[task.families.index(family), :10] = 0.0
        state.first_by[:10], state.right[:10] = task.families.index(family), 0.0
    return task, state


def test_every_effort_has_one_after_all_gradients() -> None:
    for effort in ("quick", "standard", "full"):
        for threat in (sg.Linf(0.03), sg.L2(0.5), sg.L1(2.0)):
            extra = Member("mine", "own gradient", sg.pgd)
            chosen, _ = members(effort, threat, frozenset({"neurons", "noise"}), (extra,))
            at = max(k for k, m in enumerate(chosen) if m.family == LOCAL)
            behind = {m.family for m in chosen[at + 1 :]}
            assert chosen[at].warm
            assert behind <= {"scores", "labels", "random"}, f"{effort}: gradients after the local search"
            assert extra in chosen[:at]


def test_it_attacks_what_nobody_has_broken_and_starts_at_the_best_points() -> None:
    task, state = made(PGD_20.family)
    state.found[10:50, 0, 0] = 0.6  # two of the three pixels that are needed
    state.done = (1, 0)
    task.members = (PGD_20, Member("block", LOCAL, sg.attacks.block_search, {"queries": 3}, warm=True))
    got = run_suite(task, state)
    assert got.attempted["block"] == N - 10
    near, far = (float((got.right[rows] == 0).float().mean()) for rows in (slice(10, 50), slice(50, N)))
    assert near > far + 0.3


def test_the_rest_of_masking_is_what_it_breaks_beyond_gradients() -> None:
    parts = masking(*made(LOCAL))
    assert parts is not None
    assert (parts.rest, parts.gradient) == pytest.approx((0.1, 0.0))
    parts = masking(*made(LOCAL, PGD_20.family))
    assert parts is not None
    assert parts.rest == 0.0


@pytest.mark.parametrize(("late", "flagged"), [(1, True), (0, False)])
def test_convergence_is_read_off_its_second_half(late: int, flagged: bool) -> None:
    task, state = made(LOCAL)
    state.steps = {PGD_20.id: [0] * 20 + [5], LAST.id: [0, 3, *[0] * (LAST.steps - 100), late]}
    curve = convergence(task, state)
    assert curve is not None
    assert curve.member == LAST.id
    assert curve.last_doubling == pytest.approx(late / N)
    control = Controls(
        N,
        ZeroBudget(1.0, 1.0),
        FullBudget(0.0, 0.5),
        (),
        (),
        survivors_with_gradient={"own": 1.0},
        second_attack=SecondAttack(0, N),
    )
    raised = {f.id for f in all_flags(task, state, {}, control, "quick")}
    assert ("not-converged" in raised) is flagged


def test_it_accuses_no_gradient_but_hides_no_black_box_either() -> None:
    assert len(second_attack.only_black_box(*made(LOCAL))) == 0
    assert second_attack.only_black_box(*made(LOCAL, "scores")).tolist() == list(range(10))
    assert second_attack.only_black_box(*made("scores")).tolist() == list(range(10))
    assert len(second_attack.only_black_box(*made(LOCAL, "scores", PGD_20.family))) == 0
