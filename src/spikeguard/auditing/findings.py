"""What an audit's numbers mean.

How much of the apparent robustness was masking, what each family was needed for, and the verdict in one
sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from spikeguard.auditing.run import Task
from spikeguard.auditing.state import CLEAN_WRONG, ROBUST, State
from spikeguard.auditing.suite import BLACK, OWN, Member
from spikeguard.stats import wilson


def told(share: float, total: int) -> dict[str, Any]:
    """A share with its 95 % interval over the choice of images."""
    return {"accuracy": share, "interval": list(wilson(round(share * total), total))}


def masking(task: Task, state: State) -> dict[str, float] | None:
    """Three parts between PGD-20 with the model's own gradient and the worst case, as fractions that add up.

    optimizer: what longer attacks with the own gradient break more; gradient: what other gradients break
    more; rest: what needs no gradient. None where the suite had no PGD-20 on all images.
    """
    if "PGD-20" not in state.alone or OWN not in task.families:
        return None
    valid = state.first != CLEAN_WRONG
    worst = state.by_family[:, valid]
    black = torch.tensor([f in BLACK for f in task.families], device=worst.device)
    n = len(task.x)

    def left(rows: torch.Tensor) -> float:
        return (
            float(worst[rows].amin(0).double().sum()) / n
            if bool(rows.any())
            else float(state.clean.double().mean())
        )

    start = state.alone["PGD-20"] / n
    own = min(left(torch.tensor([f == OWN for f in task.families], device=worst.device)), start)
    white, union = min(left(~black), own), min(left(torch.ones_like(black)), left(~black))
    return {
        "PGD-20": start,
        "optimizer": start - own,
        "gradient": own - white,
        "rest": white - union,
        "worst case": union,
    }


def without_each_family(task: Task, state: State) -> dict[str, float]:
    """

    Accuracy if a family had been left out (all samples were met by others until two families had broken
    them).
    """
    valid, shares = state.first != CLEAN_WRONG, {}
    for place, family in enumerate(task.families):
        others = [k for k in range(len(task.families)) if k != place]
        kept = state.by_family[others][:, valid].amin(0) if others else state.clean[valid]
        shares[family] = float(kept.double().sum()) / len(task.x)
    return shares


def member_rows(task: Task, state: State) -> list[dict[str, Any]]:
    """Per member: how many samples it met, broke first, broke that no other family broke; accuracy after it.

    What it cost.
    """
    rows = []
    for number, member in enumerate(task.members):
        mine = state.first == number
        row: dict[str, Any] = {
            **member.told(),
            "met": state.met.get(member.name, 0),
            "broke": state.broke.get(member.name, 0),
            "first": int(mine.sum()),
            "only this family": int((mine & (state.second == ROBUST)).sum()),
            "after": state.after.get(member.name),
            **state.cost.get(member.name, {}),
        }
        if member.name in state.alone:
            row["alone"] = told(state.alone[member.name] / len(task.x), len(task.x))
        if member.name in state.failed:
            row["failed"] = state.failed[member.name]
        rows.append(row)
    return rows


def convergence(task: Task, state: State) -> dict[str, Any] | None:
    """Samples broken by the longest attack against its steps (all restarts' together).

    Of those that had stood until then.
    """
    counted = [m for m in task.members if m.name in state.steps and "steps" in m.settings]
    if not counted:
        return None

    def length(member: Member) -> int:
        return int(member.settings["steps"]) * int(member.settings.get("restarts", 1))

    longest = max(reversed(counted), key=length)  # of equals the last one, which met the fewest samples
    counts, met = state.steps[longest.name], state.met[longest.name]
    steps = length(longest)
    marks = sorted(
        {min(k, steps) for k in (1, 2, 5, 10, 20, 40, 50, 100, 200, 300, 400, 500, 1000, 2000) if k <= steps}
        | {steps // 2, steps}
    )
    points = [[k, sum(counts[: k + 1])] for k in marks]
    last = (points[-1][1] - sum(counts[: steps // 2 + 1])) / len(task.x)
    return {"member": longest.name, "met": met, "broken by step": points, "last doubling": last}


def verdict(
    robust: Mapping[str, Any],
    errors: Sequence[str],
    suite: str,
    parts: Mapping[str, float] | None,
    random: bool,
) -> str:
    """The audit in one sentence."""
    low, high = (100 * v for v in robust["interval"])
    if errors:
        return (
            f"Not reliable ({', '.join(errors)}): the attacks of {suite} leave "
            f"{100 * robust['accuracy']:.1f} %, which says little about this model; "
            "see the flags."
        )
    said = f"at most {100 * robust['accuracy']:.1f} % ({low:.1f} to {high:.1f}) under {suite}"
    if random:
        said += ", as the mean share of right fresh draws"
    if parts is not None:
        own = 100 * parts["PGD-20"]
        said += f"; PGD-20 with the model's own gradient alone would have said {own:.1f} %"
    return said + "."
