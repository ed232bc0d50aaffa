"""What the numbers of an audit mean: masking, what each family is needed for, convergence, the verdict."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from spikeguard.auditing.member import BLACK, LOCAL, OWN
from spikeguard.auditing.state import CLEAN_WRONG, ROBUST, State
from spikeguard.auditing.suite import PGD_20
from spikeguard.auditing.task import Task
from spikeguard.models import are_tied, eval_mode, logits_of
from spikeguard.records.schema import Accuracy, Convergence, Masking, MemberRow, Ties

MARKS = (1, 2, 5, 10, 20, 40, 50, 100, 200, 300, 400, 500, 1000, 2000)
"""Steps at which the convergence of the longest attack is recorded."""


def masking(task: Task, state: State) -> Masking | None:
    """The gap between PGD-20 with the model's own gradient and the worst case, in three parts.

    optimizer: what longer attacks with the own gradient take; gradient: what other gradients take; rest: what
    needs no gradient, the local search among it. None where the suite has no PGD-20 on all images.
    """
    if PGD_20.id not in state.alone or OWN not in task.families:
        return None
    valid = state.first_by != CLEAN_WRONG
    worst = state.by_family[:, valid]
    black = torch.tensor([f in (*BLACK, LOCAL) for f in task.families], device=worst.device)
    n = len(task.x)

    def left(rows: torch.Tensor) -> float:
        if not bool(rows.any()):
            return float(state.clean.double().mean())
        return float(worst[rows].amin(0).double().sum()) / n

    start = state.alone[PGD_20.id] / n
    own = min(left(torch.tensor([f == OWN for f in task.families], device=worst.device)), start)
    white, union = min(left(~black), own), min(left(torch.ones_like(black)), left(~black))
    return Masking(start, start - own, own - white, white - union, union)


def without_each_family(task: Task, state: State) -> dict[str, float]:
    """Accuracy if a family had been left out, by family.

    It is exact: the other families attack every sample until two families have broken it. Only what is warm
    attacks no sample that another member has broken, so that it stands in for nobody.
    """
    valid, shares = state.first_by != CLEAN_WRONG, {}
    for number, family in enumerate(task.families):
        others = [k for k in range(len(task.families)) if k != number]
        kept = state.by_family[others][:, valid].amin(0) if others else state.clean[valid]
        shares[family] = float(kept.double().sum()) / len(task.x)
    return shares


def ties(task: Task, state: State) -> Ties | None:
    """Verdicts that rest on a tie of scores; None for a random model, whose scores are drawn anew."""
    if task.random:
        return None

    def tied(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([are_tied(logits_of(task.model, part)) for part in x.split(task.batch_size)])

    with eval_mode(task.model), torch.no_grad():
        broken = state.first_by >= 0
        return Ties(int(tied(task.x).sum()), int((tied(state.found) & broken).sum()))


def member_rows(task: Task, state: State) -> tuple[MemberRow, ...]:
    """A row for each member: what it attacked and broke, accuracy after it, its cost."""
    rows = []
    for number, member in enumerate(task.members):
        mine, n = state.first_by == number, len(task.x)
        cost = state.cost.get(member.id, {})
        rows.append(
            MemberRow(
                member.id,
                member.title,
                member.family,
                member.attack.__name__,
                dict(member.settings),
                "own" if member.gradient is None else repr(member.gradient),
                member.needs,
                attempted=state.attempted.get(member.id, 0),
                broken=state.broken.get(member.id, 0),
                first_by=int(mine.sum()),
                only_this_family=int((mine & (state.second_by == ROBUST)).sum()),
                after=state.after.get(member.id),
                alone=Accuracy.of(state.alone[member.id] / n, n) if member.id in state.alone else None,
                failed=state.failed.get(member.id),
                seconds=cost.get("seconds", 0.0),
                forwards=int(cost.get("forwards", 0)),
                backwards=int(cost.get("backwards", 0)),
            )
        )
    return tuple(rows)


def convergence(task: Task, state: State) -> Convergence | None:
    """Samples that the local search breaks by each query; where none ran, the longest attack by each step
    (all restarts together).

    None if no attack counts steps, and for a random model, whose samples have no first broken step. It
    attacks only samples that are unbroken until then.
    """
    counted = [m for m in task.members if m.id in state.attempted and m.steps and not task.random]
    if not counted:
        return None
    # the local search has the last word; of equals the last member, which has the fewest samples
    longest = max(reversed(counted), key=lambda m: (m.family == LOCAL, m.steps))
    counts, steps = state.steps.get(longest.id, []), longest.steps
    marks = sorted({k for k in MARKS if k <= steps} | {steps // 2, steps})
    points = tuple((k, sum(counts[: k + 1])) for k in marks)
    last = (points[-1][1] - sum(counts[: steps // 2 + 1])) / len(task.x)
    return Convergence(longest.id, state.attempted[longest.id], points, last)


def conclusion(
    robust: Accuracy, errors: Sequence[str], suite: str, parts: Masking | None, random: bool, ran: bool = True
) -> str:
    """The audit in one sentence; ``ran``: whether it had any attacks."""
    if errors and not ran:
        return (
            f"Not reliable ({', '.join(errors)}): no attack ran; without one "
            f"{100 * robust.value:.1f} % are right. See the flags."
        )
    if errors:
        return (
            f"Not reliable ({', '.join(errors)}): the attacks of {suite} leave {100 * robust.value:.1f} %, "
            "which says little about this model; see the flags."
        )
    low, high = 100 * robust.low, 100 * robust.high
    text = f"at most {100 * robust.value:.1f} % ({low:.1f} to {high:.1f}) under {suite}"
    if random:
        text += ", as the mean share of right fresh draws"
    if parts is not None:
        text += f"; PGD-20 with the model's own gradient alone would have said {100 * parts.pgd20:.1f} %"
    return text + "."
