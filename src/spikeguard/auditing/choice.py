"""Which members of a suite attack a model, and why the others do not."""

from __future__ import annotations

from collections.abc import Sequence

from spikeguard.attacks.adaptive import AdaptiveAttack
from spikeguard.auditing.member import LOCAL, OWN, Member
from spikeguard.auditing.suite import AUTOATTACK, AUTOATTACK_RAND, C_AND_W, FULL, SUITES
from spikeguard.gradients import Estimator, Own
from spikeguard.threat import Threat


def member_of(adaptive: AdaptiveAttack) -> Member:
    """The member that runs an adaptive attack: the equal one of ``FULL``, else a new one.

    Its family is that of the members whose gradient has the same source.
    """
    settings = dict(adaptive.settings)
    for member in FULL:
        same = (member.attack, member.settings, member.gradient)
        if same == (adaptive.attack, settings, adaptive.gradient):
            return member
    source = _source(adaptive.gradient)
    own, title = source is Own, adaptive.title
    family = OWN if own else next((m.family for m in FULL if _source(m.gradient) is source), "adaptive")
    return Member(adaptive.id, family, adaptive.attack, settings, adaptive.gradient, exact=own, title=title)


def _source(gradient: Estimator | None) -> type:
    """The kind of estimator that an average or a loss of every step is taken of."""
    inner = getattr(gradient, "inner", None)
    return type(gradient or Own()) if inner is None else _source(inner)


REASONS = {
    "neurons": "the model has no neurons that a tap works with",
    "noise": "the model is not random",
    "no gradient": "not needed: the model gives gradients",
    "no logits": "not needed: the model gives logits",
}
MISSING = {
    "sequences": "a layer is stepped from outside, or has no single decay: its sequence cannot be replaced",
    "soft steps": "a neuron of the model sends several spikes a step, for which there is no soft step",
    "resets": "a neuron of the model has a reset whose gradient cannot be cut or kept",
    "step logits": "the model gives no logits of each step: its forward takes no per_step=True",
}
"""Why a member that changes this part of neurons is left out."""


def members(
    effort: str,
    threat: Threat,
    traits: frozenset[str],
    extra: Sequence[Member] = (),
    adaptive: Sequence[AdaptiveAttack] = (),
) -> tuple[list[Member], dict[str, str]]:
    """The members that attack a model with these traits under this threat, and the reason for each left out.

    ``adaptive``: the attacks made for the model's own defenses, if the effort does not have them. What an
    effort gets beside its suite comes before the last local search, which starts at the best points of all.
    """
    chosen, left = [], {}
    rows, more = list(SUITES[effort]), list[Member]()
    if effort != "autoattack":
        own = sorted(map(member_of, adaptive), key=lambda m: FULL.index(m) if m in FULL else len(FULL))
        for member in own:
            if not any(row.covers(member) for row in (*rows, *more)):
                more.append(member)
    if "noise" in traits and effort in ("full", "autoattack"):
        rows = [m for m in rows if m not in AUTOATTACK]
        more.extend(AUTOATTACK_RAND)
    if threat.norm == "l2" and effort in ("standard", "full"):
        more.append(C_AND_W)
    at = max((k for k, m in enumerate(rows) if m.family == LOCAL), default=len(rows))
    for member in [*rows[:at], *more, *extra, *rows[at:]]:
        part = getattr(member.gradient, "part", "")
        if member.needs and member.needs not in traits:
            left[member.id] = REASONS[member.needs]
        elif part and f"no {part}" in traits:
            left[member.id] = MISSING[part]
        else:
            chosen.append(member)
    return chosen, left
